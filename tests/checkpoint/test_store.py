"""Which checkpoints stay: the newest, the best, and the old ones whatever happens to a new one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from gaguide.checkpoint import CheckpointStore, Written
from gaguide.config import EMBEDDED, load_config
from gaguide.dist import World
from gaguide.errors import UserError
from gaguide.train.preflight import prepare
from tests.support.ranks import DS_CONFIGS


def write(folder: Path) -> Written:
    (folder / "state").write_bytes(b"numbers")
    return Written([folder / "state"])


def save(store: CheckpointStore, step: int, loss: float | None) -> None:
    store.save(step, {"seed": 0}, 2, loss, write)


def test_the_best_stay_beside_the_newest(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", World.from_environment(), keep=2, keep_best=2)
    losses = {1: 5.0, 2: 3.0, 3: None, 4: 4.0, 5: float("nan"), 6: 3.0, 7: 6.0, 8: 7.0}
    for step, loss in losses.items():
        save(store, step, loss)
    assert store.steps() == [2, 6, 7, 8]
    assert (store.folder / "best").read_text() == "step-00000002\n"
    assert (store.folder / "latest").read_text() == "step-00000008\n"
    save(store, 9, 1.0)
    assert store.steps() == [2, 8, 9]
    assert (store.folder / "best").read_text() == "step-00000009\n"


def test_a_failed_save_leaves_nothing_and_says_what_to_do(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", World.from_environment(), keep=1)
    save(store, 1, None)

    def half(folder: Path) -> Written:
        (folder / "state").write_bytes(b"num")
        return Written([folder / "state"], "No space left on device")

    with pytest.raises(UserError, match=r"No space left on device.*of step 1, is whole"):
        store.save(2, {"seed": 0}, 2, None, half)
    assert sorted(path.name for path in store.folder.iterdir()) == ["latest", "step-00000001"]
    found = store.newest({"seed": 0})
    assert found is not None and dataclasses.asdict(found)["step"] == 1


@pytest.mark.parametrize(("validation", "every", "refused"), [(0, 2, True), (3, 4, True), (4, 2, False)])
def test_keep_best_needs_a_loss(
    embedded_shards: Path, tmp_path: Path, validation: int, every: int, refused: bool
) -> None:
    overrides = {
        "data.shards": str(embedded_shards),
        "output": str(tmp_path),
        "data.block_length": "32",
        "train.steps": "8",
        "checkpoint.keep_best": "1",
        "checkpoint.every": str(every),
        "validation.every": str(validation),
    }
    run = load_config(EMBEDDED, overrides)
    if not refused:
        prepare(run, DS_CONFIGS / "zero2.json", World.from_environment())
        return
    with pytest.raises(UserError, match="no validation before the last step falls on a checkpoint"):
        prepare(run, DS_CONFIGS / "zero2.json", World.from_environment())
