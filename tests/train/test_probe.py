"""`micro_batch: auto` fits the available memory and changes neither global batch nor identity."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gaguide.config import EMBEDDED, divisors, load_config
from gaguide.distributed import World
from gaguide.errors import UserError
from gaguide.train import probe
from gaguide.train.preflight import prepare
from gaguide.train.probe import estimate, largest, settle_micro_batch
from tests.support.ranks import DS_CONFIGS

ZERO2 = DS_CONFIGS / "zero2.json"


@pytest.mark.parametrize("fits", range(0, 40, 3))
def test_largest_candidate_that_fits(fits: int) -> None:
    tried: list[int] = []

    def check(size: int) -> bool:
        tried.append(size)
        return size <= fits

    sizes = divisors(36)
    assert largest(sizes, check) == max((size for size in sizes if size <= fits), default=None)
    assert len(tried) <= 4


def test_auto_follows_memory_and_keeps_the_global_batch(
    embedded_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"data.shards": str(embedded_shards), "output": str(tmp_path), "train.global_batch": "24"}
    world = World()
    job = prepare(load_config(EMBEDDED, settings | {"train.micro_batch": "auto"}), ZERO2, world)
    plain = prepare(load_config(EMBEDDED, settings), ZERO2, world)
    needed = {size: estimate(job, size, world).peak for size in divisors(24)}
    assert list(needed.values()) == sorted(needed.values())
    assert estimate(job, 4, world).host == 0

    def settled(available: float) -> int:
        monkeypatch.setattr(probe, "available_memory", lambda device: available)
        found = settle_micro_batch(job, ZERO2, world)
        batch = found.batch
        assert batch.micro_batch * batch.accumulation == batch.global_batch == 24
        assert found.deepspeed.micro_batch == batch.micro_batch
        assert found.deepspeed.accumulation == batch.accumulation
        assert found.identity == job.identity == plain.identity
        assert f"micro batch: {batch.micro_batch} of a rank's 24 sequences" in capsys.readouterr().out
        return batch.micro_batch

    assert settled(1e12) == 24
    assert settled(needed[6] / 0.84) == 6
    assert settled(needed[1] / 0.84) == 1
    with pytest.raises(UserError, match="even 1 does not fit"):
        settled(needed[1] / 2)
    # Resumed on as many ranks: the micro batch of the first start, whatever memory is free now.
    (tmp_path / "deepspeed.json").write_text(
        json.dumps({"train_micro_batch_size_per_gpu": 3, "gradient_accumulation_steps": 8})
    )
    assert settled(1e12) == 3


def test_a_number_is_not_changed(embedded_shards: Path, tmp_path: Path) -> None:
    settings = {"data.shards": str(embedded_shards), "output": str(tmp_path), "train.micro_batch": "2"}
    job = prepare(load_config(EMBEDDED, settings), ZERO2, World())
    assert settle_micro_batch(job, ZERO2, World()) is job
    with pytest.raises(UserError, match="micro_batch"):
        load_config(EMBEDDED, settings | {"train.micro_batch": "much"})
