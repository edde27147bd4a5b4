"""Commands that may take long say what they do and how far they are."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from gaguide.cli import main
from gaguide.log import SlowWork
from tests.evaluate.conftest import save_gpt2
from tests.report.synthetic import write_run


def test_long_commands_report_their_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    works: list[SlowWork] = []
    enter = SlowWork.__enter__
    monkeypatch.setattr(SlowWork, "__enter__", lambda work: (works.append(work), enter(work))[1])
    monkeypatch.chdir(tmp_path)

    def run(command: str) -> dict[str, SlowWork]:
        works.clear()
        monkeypatch.setattr(sys, "argv", ["gaguide", *command.split()])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        return {work.what: work for work in works}

    model = save_gpt2(tmp_path / "model")
    write_run(tmp_path / "run", "run")
    assert {"reading the records", "drawing page.html"} <= run("report run --output page.html").keys()
    rows = [{"prompt": f"word {at}", "classes": [" a", " b"], "answer_index": 0} for at in range(5)]
    (tmp_path / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    encoding = run(f"eval validate quiz.jsonl --model {model}")["encoding examples"]
    assert (encoding.total, encoding._count) == (5, 4)
    (tmp_path / "text.txt").write_text("not one word but many " * 40)
    found = run(f"attention --model {model} --text-file text.txt --layers 0 --heads 0 --output page2.html")
    parts = found[f"{tmp_path.name}: attention of parts of the text"]
    assert parts._count == parts.total and (parts.total or 0) > 1
    assert {f"{tmp_path.name}: loading the model", "drawing page2.html"} <= found.keys()
