"""The checkpoint store keeps the newest and the best, and older ones whatever happens to a new one."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
from pathlib import Path

import pytest

from gaguide.checkpoint import CheckpointStore
from gaguide.checkpoint.folder import choose, describe_checkpoints
from gaguide.config import EMBEDDED
from gaguide.distributed import World
from gaguide.engine.save import SaveResult
from gaguide.errors import UserError
from gaguide.train.precheck import precheck
from tests.support.ranks import DS_CONFIGS


def write(folder: Path) -> SaveResult:
    (folder / "state").write_bytes(b"numbers")
    return SaveResult([folder / "state"])


def save(store: CheckpointStore, step: int, loss: float | None) -> None:
    store.save(step, {"seed": 0}, {"zero_stage": 2}, loss, write)


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
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


def test_a_failed_save_leaves_nothing_behind(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", World.from_environment(), keep=1)
    save(store, 1, None)

    def half(folder: Path) -> SaveResult:
        (folder / "state").write_bytes(b"num")
        return SaveResult([folder / "state"], "No space left on device")

    with pytest.raises(UserError, match=r"No space left on device.*of step 1, is complete"):
        store.save(2, {"seed": 0}, {"zero_stage": 2}, None, half)
    assert sorted(path.name for path in store.folder.iterdir()) == ["latest", "step-00000001"]
    found = store.newest({"seed": 0})
    assert found is not None and dataclasses.asdict(found)["step"] == 1


def test_a_partial_checkpoint_is_never_visible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Old ones are renamed before they are removed; the next start removes what a kill leaves behind."""
    store = CheckpointStore(tmp_path / "checkpoints", World.from_environment(), keep=1)
    save(store, 1, None)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", busy_unless_missing)
        save(store, 2, None)
    assert (
        "step-00000001 could not be removed completely (Device or resource busy)" in capsys.readouterr().out
    )
    (store.folder / ".saving-step-00000003").mkdir()
    assert store.steps() == [2] and (store.folder / ".removing-step-00000001" / "state").exists()
    found = store.newest({"seed": 0})
    assert found is not None and found.step == 2
    assert not list(store.folder.glob(".*"))


def busy_unless_missing(folder: Path, **_: object) -> None:
    if folder.exists():
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(folder))


def test_damaged_checkpoints_are_skipped_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", World.from_environment(), keep=4)
    for step, loss in {1: 3.0, 2: 1.0, 3: 2.0, 4: None}.items():
        save(store, step, loss)
    assert [choose(tmp_path, step).step for step in ("latest", "best", "1")] == [4, 2, 1]
    for step in (2, 4):
        (store.path(step) / "state").write_bytes(b"another")
    assert [choose(tmp_path, step).step for step in ("latest", "best")] == [3, 3]
    assert capsys.readouterr().out.count("is skipped: state is damaged") == 2
    for step, problem in (("2", "state is damaged"), ("7", "does not exist.*choose one of: 1, 2, 3, 4")):
        with pytest.raises(UserError, match=f"(?s){problem}"):
            choose(tmp_path, step)


def test_a_loss_measured_later_is_added_to_the_manifest(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", World.from_environment(), keep=1, keep_best=1)
    save(store, 1, None)
    store.note_loss(1, 2.5)
    store.note_loss(1, 9.0)
    found = store.newest({"seed": 0})
    assert found is not None and found.lm_loss == 2.5 and store.best() == [1]


def test_losses_of_different_blocks_are_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`validation.blocks` was changed after step 2, whose lower loss is of the old blocks."""
    folder, world = tmp_path / "checkpoints", World.from_environment()
    for steps, measure in (({1: 3.0, 2: 1.0}, "old"), ({3: 2.0, 4: 2.5}, "new")):
        store = CheckpointStore(folder, world, keep=4, keep_best=1, measure=measure)
        for step, loss in steps.items():
            save(store, step, loss)
    assert (folder / "best").read_text() == "step-00000003\n"
    assert choose(tmp_path, "best").step == 3
    assert "2 checkpoints are of other validation blocks: not compared" in capsys.readouterr().out
    assert [each.step for each in describe_checkpoints(tmp_path) if each.best] == [3]
    store.note_loss(2, 5.0)  # measured again
    assert store.best() == [3, 4, 2]


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
    if not refused:
        precheck(EMBEDDED, overrides, DS_CONFIGS / "zero2.json", ranks=1)
        return
    with pytest.raises(UserError, match="no validation before the last step falls on a checkpoint"):
        precheck(EMBEDDED, overrides, DS_CONFIGS / "zero2.json", ranks=1)
