"""Configs load, override, extend each other, and report every mistake at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from gaguide.config import EMBEDDED, dump_config, load_config, parse_overrides, plan_batch
from gaguide.config.experiments import EXPERIMENTS
from gaguide.errors import UserError
from tests.support.ranks import REPOSITORY

RECIPES = REPOSITORY / "launch" / "recipes"
SIZES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_recipe_exists_for_every_experiment_and_size(size: str, experiment: str) -> None:
    run = load_config(RECIPES / f"{size}-{experiment}.yaml", {})
    assert (run.model.name, run.model.init) == (size, "pretrained")
    assert run.guidance.experiment == experiment
    assert run.name == f"{size}-{experiment}" and run.output == f"runs/{size}-{experiment}"
    assert run.train.epochs == (2 if size == "gpt2" else 1)
    assert run.data.block_length == 1024


def test_overrides_in_both_spellings_and_round_trip(tmp_path: Path) -> None:
    run = load_config(
        EMBEDDED, parse_overrides(["--train.steps", "7", "--guidance.layers=0,2", "--output", "2024"])
    )
    assert (run.train.steps, run.guidance.layers, run.output) == (7, (0, 2), "2024")
    (tmp_path / "run.yaml").write_text(dump_config(run))
    assert load_config(tmp_path / "run.yaml", {}) == run


def test_every_fault_at_once_with_remedies() -> None:
    with pytest.raises(UserError) as error:
        load_config(
            EMBEDDED,
            {
                "train.learning_rat": "1",
                "seed": "-1",
                "guidance.reduction": "sum",
                "trian.steps": "3",
                "train.epochs": "1",
            },
        )
    text = str(error.value)
    assert "did you mean 'learning_rate'?" in text
    assert "did you mean 'train'?" in text
    assert "seed = -1" in text and "guidance.reduction = 'sum'" in text
    with pytest.raises(UserError, match="exactly one of epochs and steps"):
        load_config(EMBEDDED, {"train.epochs": "1"})


@pytest.mark.parametrize("arguments", [["--train.steps"], ["steps", "3"], ["--train.steps", "--seed", "1"]])
def test_malformed_arguments_are_named(arguments: list[str]) -> None:
    with pytest.raises(UserError, match=r"has no value|is no option"):
        parse_overrides(arguments)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "is not YAML"),
        ("- 1", "holds no sections"),
        (None, "must be one of gpt2.*or the path of a file"),
        ("train: {steps: 1}\nseed: 0\ntrain: {steps: 2}", "train stands there twice"),
    ],
)
def test_unreadable_files(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "run.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        load_config(path, {})


def test_extends_that_never_ends_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("extends: run.yaml")
    with pytest.raises(UserError, match="itself"):
        load_config(tmp_path / "run.yaml", {})


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
@pytest.mark.parametrize("micro_batch", [None, 1, 2, 4])
def test_the_batch_is_what_the_user_set(world_size: int, micro_batch: int | None) -> None:
    plan = plan_batch(32, micro_batch, world_size)
    assert plan.micro_batch * plan.accumulation * plan.world_size == 32
    assert micro_batch in (None, plan.micro_batch)
