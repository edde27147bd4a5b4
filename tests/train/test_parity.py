"""Equal losses at every ZeRO stage, number of ranks and split of the batch; weight 0 is plain fine-tuning."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from gaguide.log import read_metrics
from tests.support.ranks import run_ranks
from tests.train.parity_script import RUNS

pytestmark = pytest.mark.processes

SCRIPT = Path(__file__).parent / "parity_script.py"
CURVES = ("loss", "lm_loss", "guidance_loss", "guided_attention", "grad_norm")


@pytest.fixture(scope="module")
def curves(embedded_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    """Metrics of all runs on two ranks, and of one run on a single rank."""
    folder = tmp_path_factory.mktemp("parity")
    everything = ",".join(RUNS)
    for where, names, ranks in ((folder, everything, 2), (folder / "alone", "zero1", 1)):
        done = run_ranks(SCRIPT, [str(embedded_shards), str(where), names, "0.0"], ranks)
        assert done.returncode == 0, done.stdout
    found = {path.parent.name: read_metrics(path) for path in folder.glob("*/metrics.jsonl")}
    found["one rank"] = read_metrics(folder / "alone" / "zero1" / "metrics.jsonl")
    validations = {p.parent.name: read_metrics(p) for p in folder.glob("*/validation.jsonl")}
    validations["one rank"] = read_metrics(folder / "alone" / "zero1" / "validation.jsonl")
    found["folder"] = [{"path": str(folder)}]
    return found | {f"validation of {name}": records for name, records in validations.items()}


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3", "accumulated", "checkpointed", "one rank"])
def test_same_losses_as_zero0_on_two_ranks(curves: dict[str, list[dict]], name: str) -> None:
    assert [record["step"] for record in curves[name]] == [1, 2, 3, 4, 5, 6]
    for ours, reference in zip(curves[name], curves["zero0"]):
        for curve in CURVES:
            if reference[curve] is None:  # a batch in which no query sees a target
                assert curve == "guided_attention" and ours[curve] is None
            else:
                assert ours[curve] == pytest.approx(reference[curve], rel=2e-5), (ours["step"], curve)
    for ours, reference in zip(curves[f"validation of {name}"], curves["validation of zero0"]):
        assert ours["step"] == reference["step"]
        assert ours["sequences"] == 7
        assert ours["lm_loss"] == pytest.approx(reference["lm_loss"], rel=2e-5)
        assert ours["guided_attention"] == pytest.approx(reference["guided_attention"], rel=2e-4)


@pytest.mark.stress
@pytest.mark.parametrize("ranks", [1, 4])
def test_same_losses_at_every_stage_on_one_rank_and_on_four(
    embedded_shards: Path, tmp_path: Path, curves: dict[str, list[dict]], ranks: int
) -> None:
    """Every stage, split and whole batches, with and without checkpointing; reference: ZeRO-0, two ranks."""
    names = ["zero0", "zero1", "zero2", "zero3", "accumulated", "checkpointed"]
    done = run_ranks(SCRIPT, [str(embedded_shards), str(tmp_path), ",".join(names), "0.0"], ranks)
    assert done.returncode == 0, done.stdout
    for name in names:
        records = read_metrics(tmp_path / name / "metrics.jsonl")
        assert len(records) == 6
        for ours, reference in zip(records, curves["zero0"]):
            for curve in CURVES:
                expected = None if reference[curve] is None else pytest.approx(reference[curve], rel=2e-5)
                assert ours[curve] == expected, (name, ours["step"], curve)


def test_weight_zero_is_plain_fine_tuning_bit_for_bit(curves: dict[str, list[dict]]) -> None:
    for measured, plain in zip(curves["weight0"], curves["finetuned"]):
        assert measured["loss"] == measured["lm_loss"] == plain["lm_loss"]
        assert measured["grad_norm"] == plain["grad_norm"]
        assert measured["guidance_loss"] == 0
        assert measured["guided_attention"] is None or 0 < measured["guided_attention"] < 1
        assert plain["guided_attention"] is None


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_follows_fp32_and_exports_its_fp32_weights(curves: dict[str, list[dict]], stage: int) -> None:
    for half, full in zip(curves[f"bf16-{stage}"], curves["zero2"]):
        assert half["lm_loss"] == pytest.approx(full["lm_loss"], rel=5e-3)
        assert half["guidance_loss"] == pytest.approx(full["guidance_loss"], rel=5e-2)
    model = AutoModelForCausalLM.from_pretrained(curves["folder"][0]["path"] + f"/bf16-{stage}/model")
    assert model.dtype == torch.float32
    weight = model.transformer.h[0].mlp.c_fc.weight
    assert not torch.equal(weight, weight.bfloat16().float())  # more digits than bf16 holds


def test_ranks_without_targets_neither_hang_nor_contribute_to_the_loss(curves: dict[str, list[dict]]) -> None:
    records = curves["unequal"]
    assert len(records) == 6
    without = [record for record in records if record["guided_attention"] is None]
    assert without and all(record["guidance_loss"] == 0 for record in without)


def test_guidance_changes_what_is_trained(curves: dict[str, list[dict]]) -> None:
    assert any(record["guided_attention"] for record in curves["weight0"])
    assert curves["zero2"][0]["guidance_loss"] > 0
    assert curves["zero2"][0]["loss"] > curves["zero2"][0]["lm_loss"]
    assert curves["zero2"][-1]["lm_loss"] != curves["finetuned"][-1]["lm_loss"]
