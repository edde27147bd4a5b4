"""Runs resume at another ZeRO stage, offload and number of ranks, with the losses of an unchanged run."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from gaguide.cli.checkpoint import app as checkpoints
from gaguide.data import BlockStore
from gaguide.errors import UserError
from gaguide.log import read_metrics
from tests.support.ranks import run_ranks

pytestmark = pytest.mark.processes

SCRIPT = Path(__file__).parent / "resize_script.py"
STAGES = {"fp32": "0123", "bf16": "123"} | ({"fp16": "123"} if torch.cuda.is_available() else {})


def run_all(shards: Path, folder: Path, ranks: int, names: list[str]) -> str:
    done = run_ranks(SCRIPT, [str(shards), str(folder), ",".join(names)], ranks, timeout=1500)
    assert done.returncode == 0, done.stdout
    return done.stdout


def check(folder: Path, source: str, target: str, ranks: int) -> None:
    """Steps 4 to 6, after the change, have the losses of the unchanged run.

    The first of them depends on the weights, the later ones on moments, step count and both weight decays.
    """
    ours = read_metrics(folder / f"{source}-to-{target}-on-{ranks}" / "metrics.jsonl")
    theirs = read_metrics(folder / source / "metrics.jsonl")
    assert [record["step"] for record in ours] == [1, 2, 3, 4, 5, 6]
    assert ours[:3] == theirs[:3]
    half = not target.startswith("fp32")
    for mine, other in zip(ours[3:], theirs[3:], strict=True):
        for curve in ("loss", "lm_loss", "grad_norm"):
            close = pytest.approx(other[curve], rel=1e-2 if half else 2e-5)
            assert mine[curve] == close, (source, target, ranks, mine["step"], curve)


PAIRS = [
    ("fp32-2-on-2", "fp32-3"),
    ("fp32-2-on-2", "fp32-0"),
    ("bf16-3-on-2", "bf16-1"),
    ("fp32-2-on-2", "fp32-2+cpu"),
    ("bf16-3-on-2", "bf16-3+parts"),
    ("fp32-3+untied-on-2", "fp32-2+untied"),
]


@pytest.fixture(scope="module")
def runs(embedded_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on two ranks and their continuations at other stages, all in one launch."""
    folder = tmp_path_factory.mktemp("resize")
    names = ["fp32-2", "bf16-3", "fp32-3+untied", *(f"{source}>{target}" for source, target in PAIRS)]
    printed = run_all(embedded_shards, folder, 2, names)
    assert (
        "by 2 ranks at ZeRO stage 2: its state is resharded to 2 at ZeRO stage 2, optimizer on cpu" in printed
    )
    assert printed.count("its state is resharded to 2 at ZeRO stage") == len(PAIRS)
    return folder


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_resume_at_another_stage_or_offload(runs: Path, source: str, target: str) -> None:
    """test_disk_full.py changes the number of ranks; all pairs are in the stress suite."""
    check(runs, source, target, 2)


def test_checkpoints_are_listed_verified_and_exported(runs: Path, tmp_path: Path) -> None:
    """The export of either stage equals the run's own export bit for bit."""
    command = CliRunner()
    for name in ("fp32-2-on-2", "fp32-2-on-2-to-fp32-3-on-2"):
        output = tmp_path / name
        listed = command.invoke(checkpoints, ["list", str(runs / name), "--json"])
        found = json.loads(listed.stdout)["checkpoints"]
        assert [(each["step"], each["latest"], each["best"]) for each in found] == [
            (3, False, False),
            (6, True, True),
        ]
        assert all(each["whole"] and each["world_size"] == 2 and each["lm_loss"] > 1 for each in found)
        assert [each["zero_stage"] for each in found] == [2, 3 if "to" in name else 2]
        done = command.invoke(
            checkpoints, ["export", str(runs / name), "--step", "best", "--output", str(output)]
        )
        assert done.exit_code == 0, done.output
        ours, theirs = (load_file(path / "model.safetensors") for path in (output, runs / name / "model"))
        assert ours.keys() == theirs.keys() and "lm_head.weight" not in ours
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    rounded = tmp_path / "rounded"
    wanted = ["export", str(runs / "fp32-2-on-2"), "--output", str(rounded), "--dtype"]
    assert "--dtype" in str(command.invoke(checkpoints, [*wanted, "fp8"]).exception)
    assert command.invoke(checkpoints, [*wanted, "bf16"]).exit_code == 0
    halves, whole = (
        load_file(path / "model.safetensors") for path in (rounded, runs / "fp32-2-on-2" / "model")
    )
    assert all(torch.equal(halves[key], whole[key].to(torch.bfloat16)) for key in whole)
    assert AutoModelForCausalLM.from_pretrained(rounded).dtype == torch.bfloat16
    assert (
        json.loads((runs / "fp32-2-on-2" / "summary.json").read_text())["best_checkpoint"] == "step-00000006"
    )


@pytest.mark.parametrize("name", ["fp32-3+untied-on-2", "fp32-3+untied-on-2-to-fp32-2+untied-on-2"])
def test_an_untied_output_layer_is_exported(
    runs: Path, embedded_shards: Path, tmp_path: Path, name: str
) -> None:
    """It differs from the embeddings after training, and yields the recorded loss."""
    output = tmp_path / "model"
    done = CliRunner().invoke(checkpoints, ["export", str(runs / name), "--output", str(output)])
    assert done.exit_code == 0, done.output
    ours, theirs = (load_file(path / "model.safetensors") for path in (output, runs / name / "model"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert not torch.equal(ours["lm_head.weight"], ours["transformer.wte.weight"])
    model = AutoModelForCausalLM.from_pretrained(output).eval()
    assert model.lm_head.weight is not model.transformer.wte.weight
    held_out = BlockStore(embedded_shards, "validation", 32)
    ids = torch.from_numpy(held_out.read(np.arange(4) * len(held_out) // 4))
    recorded = read_metrics(runs / name / "validation.jsonl")[-1]
    assert recorded["step"] == 6
    assert model(input_ids=ids, labels=ids).loss.item() == pytest.approx(recorded["lm_loss"], rel=1e-5)


def test_nothing_of_a_damaged_checkpoint_is_unpickled(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "fp32-2-on-2" / "checkpoints" / "step-00000006", tmp_path / "step-00000006")
    canary = tmp_path / "executed"
    (victim, *_) = (tmp_path / "step-00000006" / "state").glob("*optim_states.pt")
    torch.save({"optimizer_state_dict": _Touch(str(canary))}, victim)
    command = CliRunner()
    done = command.invoke(checkpoints, ["verify", str(tmp_path / "step-00000006")])
    assert done.exit_code == 1 and f"{victim.name} is damaged" in done.stdout
    done = command.invoke(
        checkpoints, ["export", str(tmp_path / "step-00000006"), "--output", str(tmp_path / "model")]
    )
    assert isinstance(done.exception, UserError) and "is damaged" in str(done.exception)
    shutil.copytree(runs / "fp32-2-on-2" / "checkpoints" / "step-00000003", tmp_path / "step-00000003")
    torch.save(_Touch(str(canary)), victim.parents[2] / "step-00000003" / "state" / f"x_{victim.name}")
    done = command.invoke(checkpoints, ["export", str(tmp_path), "--output", str(tmp_path / "model")])
    assert isinstance(done.exception, UserError) and "is damaged" in str(done.exception)
    done = command.invoke(checkpoints, ["verify", str(tmp_path / "step-00000003")])
    assert f"x_{victim.name} does not belong to this checkpoint" in done.stdout
    assert not canary.exists() and not (tmp_path / "model").exists()


class _Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


@pytest.mark.stress
def test_every_change_of_stage_and_number_of_ranks(embedded_shards: Path, tmp_path: Path) -> None:
    """Stages 0 to 3 in fp32, 1 to 3 in bf16 and fp16, from one and two ranks to one, two and four."""
    for ranks in (1, 2):
        whole = [f"{precision}-{stage}" for precision, stages in STAGES.items() for stage in stages]
        run_all(embedded_shards, tmp_path, ranks, whole)
    for ranks in (1, 2, 4):
        pairs = [
            (f"{precision}-{a}-on-{before}", f"{precision}-{b}")
            for precision, stages in STAGES.items()
            for before, a, b in itertools.product((1, 2), stages, stages)
            if (before, a) != (ranks, b) and (ranks < 4 or precision != "fp16")
        ]
        run_all(embedded_shards, tmp_path, ranks, [f"{source}>{target}" for source, target in pairs])
        for source, target in pairs:
            check(tmp_path, source, target, ranks)
