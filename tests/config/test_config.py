"""Run settings load, take overrides, extend each other, and report every fault at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from gaguide.config import EMBEDDED, dump_config, load_config, parse_overrides, plan_batch
from gaguide.config.experiments import EXPERIMENTS
from gaguide.config.yaml_tree import read_yaml
from gaguide.errors import UserError
from gaguide.evaluate.tasks.task import read_task_file
from gaguide.study.file import load_study
from tests.support.ranks import REPOSITORY

RECIPES = REPOSITORY / "launch" / "recipes"
SIZES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_recipe_exists_for_every_experiment_and_size(size: str, experiment: str) -> None:
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


def test_every_fault_is_reported_at_once_with_its_remedy() -> None:
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
        load_config(EMBEDDED, {"train.epochs": "1", "train.steps": "3"})


@pytest.mark.parametrize(
    ("field", "value", "problem", "remedy"),
    [
        ("train.learning_rate", "-1", "must be greater than 0", "a number greater than 0"),
        ("train.global_batch", "many", "must be a valid integer", "an integer greater than 0"),
        ("train.micro_batch", "0", "must be greater than 0", "an integer greater than 0, 'auto' or null"),
        ("train.schedule", "step", "must be 'cosine', 'linear' or 'constant'", "'constant'"),
        ("model.dropout", "1", "must be less than 1", "a number at least 0 and less than 1 or null"),
        ("train.gradient_checkpointing", "perhaps", "must be a valid boolean", "true or false"),
        ("guidance.layers", "first-half", "must be 'all' or 'last-half'", "a list of integers at least 0"),
    ],
)
def test_remedy_says_what_is_accepted(field: str, value: str, problem: str, remedy: str) -> None:
    """A remedy that describes the field's meaning would not help to correct the value."""
    with pytest.raises(UserError) as error:
        load_config(EMBEDDED, {field: value})
    faults = [fault for fault in error.value.faults if fault.field == field]
    assert faults and any(problem in fault.problem for fault in faults)
    assert all(remedy in fault.remedy for fault in faults)


def test_missing_field_is_named_with_what_it_accepts(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("output: out\nmodel: {name: tiny}\ndata: {shards: embedded}\n")
    with pytest.raises(UserError) as error:
        load_config(tmp_path / "run.yaml", {"train.steps": "1"})
    (fault,) = error.value.faults
    assert (fault.field, fault.problem) == ("train.global_batch", "is required")
    assert "an integer greater than 0" in fault.remedy


@pytest.mark.parametrize("arguments", [["--train.steps"], ["steps", "3"], ["--train.steps", "--seed", "1"]])
def test_malformed_arguments_are_named(arguments: list[str]) -> None:
    with pytest.raises(UserError, match=r"expected a value|unexpected argument"):
        parse_overrides(arguments)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "is not valid YAML"),
        ("- 1", "must be a mapping"),
        (None, "must be one of gpt2.*or the path of a file"),
    ],
)
def test_unreadable_files_are_refused(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "run.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        load_config(path, {})


READERS: dict[str, Callable[[Path], Any]] = {
    "run": lambda path: load_config(path, {}),
    "study": lambda path: load_study(path, {}),
    "task": read_task_file,
}


@pytest.mark.parametrize("kind", READERS)
def test_duplicate_keys_are_refused(tmp_path: Path, kind: str) -> None:
    """PyYAML silently takes the last one."""
    path = tmp_path / "settings.yaml"
    path.write_text("name: a\nseed: 0\nname: b\n")
    with pytest.raises(UserError, match=r"duplicate key 'name'(.|\n)*line 3"):
        READERS[kind](path)


BOMBS = {
    "list": ("[1, 2]", "[{0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}]"),
    "merge": ("{x: 1}", "{{a: {{<<: {0}}}, b: {{<<: {0}}}, c: {{<<: {0}}}, d: {{<<: {0}}}}}"),
}


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("bomb", BOMBS)
def test_alias_bomb_is_refused_without_expanding_it(tmp_path: Path, kind: str, bomb: str) -> None:
    """Thirty levels of aliases expand to more values than memory holds: unbounded, this would not return."""
    first, level = BOMBS[bomb]
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{number}: &a{number} " + level.format(f"*a{number - 1}") for number in range(1, 31)]
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match="more than 100,000 values"):
        READERS[kind](path)


def test_alias_inside_its_own_value_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("name: &name [*name]")
    with pytest.raises(UserError, match="an alias of a value that contains it"):
        load_config(path, {})


def test_aliases_and_merge_keys_still_work(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("base: &base {a: 1, b: 2}\nover: {<<: *base, b: 3}\n")
    assert read_yaml(path, "--config") == {"base": {"a": 1, "b": 2}, "over": {"a": 1, "b": 3}}


def test_extends_that_never_ends_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("extends: run.yaml")
    with pytest.raises(UserError, match="itself"):
        load_config(tmp_path / "run.yaml", {})


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
@pytest.mark.parametrize("micro_batch", [None, 1, 2, 4])
def test_split_keeps_the_global_batch_and_a_given_micro_batch(
    world_size: int, micro_batch: int | None
) -> None:
    plan = plan_batch(32, micro_batch, world_size)
    assert plan.micro_batch * plan.accumulation * plan.world_size == 32
    assert micro_batch in (None, plan.micro_batch)


def test_an_override_replaces_its_partner_and_says_so(tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    tree = yaml.safe_load(EMBEDDED.read_text())
    del tree["train"]["steps"]
    tree["train"]["epochs"] = 2
    base.write_text(yaml.safe_dump(tree))
    notes: list[str] = []
    run = load_config(base, {"train.steps": "6"}, notes.append)
    assert (run.train.steps, run.train.epochs) == (6, None)
    assert notes == [f"--train.steps replaces train.epochs = 2 of {base}"]
    plan = {"guidance.plan": "[{pattern: contrast, heads: 0}]"}
    run = load_config(base, plan, notes.append)
    assert run.guidance.experiment == "finetuned" and run.guidance.plan[0].pattern == "contrast"
    assert notes[1:] == [f"--guidance.plan replaces guidance.experiment = 1-negation of {base}"]
    with pytest.raises(UserError, match="exactly one of epochs and steps"):
        load_config(base, {"train.steps": "6", "train.epochs": "1"})
    over = tmp_path / "over.yaml"
    over.write_text("extends: base.yaml\ntrain: {steps: 3}\ndata: {mixture: [{shards: a, weight: 1}]}\n")
    run = load_config(over, {"data.shards": "b"}, notes.append)
    assert (run.train.steps, run.train.epochs, run.data.shards, run.data.mixture) == (3, None, "b", ())
    assert notes[2:] == [
        f"{over}: train.steps replaces train.epochs = 2 of base.yaml",
        f"{over}: data.mixture replaces data.shards = embedded of base.yaml",
        f"--data.shards replaces data.mixture = {[{'shards': 'a', 'weight': 1}]} of {over}",
    ]


def test_a_model_named_without_init_does_not_inherit_random_weights(tmp_path: Path) -> None:
    """Else a pretrained model would be trained from random weights, with nothing but its loss to tell."""
    notes: list[str] = []
    assert load_config(None, {"model.name": "nano"}, notes.append).model.init == "scratch"
    assert not notes
    for name in (str(tmp_path), "organisation/model", "distilgpt2"):
        assert load_config(None, {"model.name": name}, notes.append).model.init == "pretrained"
    assert notes == ["--model.name replaces model.init = scratch of the embedded run"] * 3
    given = {"model.name": str(tmp_path), "model.init": "scratch"}
    assert load_config(None, given, notes.append).model.init == "scratch"
    over = tmp_path / "over.yaml"
    over.write_text(f"extends: {EMBEDDED}\nmodel: {{name: {tmp_path}}}\n")
    assert load_config(over, {}).model.init == "pretrained"


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"guidance.loss": "log-mass", "guidance.reduction": "frobenius"}, "apply to the loss squared only"),
        ({"guidance.loss": "kl", "guidance.target": "normalized"}, "apply to the loss squared only"),
        ({"guidance.loss": "log-mass", "guidance.threshold": "0.3"}, "applies to the loss hinge only"),
        ({"guidance.loss": "hinge", "guidance.threshold": "0"}, "greater than 0"),
        ({"guidance.loss": "mass"}, "log-mass"),
    ],
)
def test_settings_that_a_guidance_loss_would_ignore_are_refused(
    settings: dict[str, str], problem: str
) -> None:
    with pytest.raises(UserError, match=problem):
        load_config(EMBEDDED, settings)


def test_the_default_weight_is_that_of_the_loss(tmp_path: Path) -> None:
    assert load_config(EMBEDDED, {}).guidance.weight == 3.0
    run = load_config(EMBEDDED, {"guidance.loss": "hinge"})
    assert run.guidance.weight == 0.01
    assert load_config(EMBEDDED, {"guidance.loss": "avoid"}).guidance.weight == 0.03
    (tmp_path / "run.yaml").write_text(dump_config(run))
    assert load_config(tmp_path / "run.yaml", {}) == run
    assert load_config(EMBEDDED, {"guidance.loss": "kl", "guidance.weight": "3"}).guidance.weight == 3.0
