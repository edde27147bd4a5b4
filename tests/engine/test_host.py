"""A step leaves the device alone: nothing is synchronised or pickled, logged numbers are read at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.ranks import run_ranks

pytestmark = pytest.mark.processes


def test_steps_wait_for_the_device_only_to_read_numbers(embedded_shards: Path, tmp_path: Path) -> None:
    """On two ranks at ZeRO 2, from a source that is tokenised meanwhile; steps 1, 3, 6 and 7 are logged."""
    text = tmp_path / "text.jsonl"
    rows = (
        json.dumps({"text": f"Not every line is alike: this one is number {at}. " * 20}) for at in range(400)
    )
    text.write_text("\n".join(rows))
    script = Path(__file__).parent / "host_script.py"
    done = run_ranks(script, [str(text), str(embedded_shards / "tokenizer"), str(tmp_path)])
    assert done.returncode == 0, done.stdout
    steps = json.loads((tmp_path / "host.json").read_text())
    assert len(steps) == 7
    assert [step["synchronised"] for step in steps] == [0] * 7
    assert [step["pickled"] for step in steps[:-1]] == [0] * 6
    reads = {at: step["read"] for at, step in enumerate(steps, start=1)}
    assert reads[3] == reads[2] == reads[4] == reads[5], reads
