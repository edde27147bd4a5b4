"""The study file and its grid: cells, their ids, and all faults of a file at once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from gaguide.errors import UserError
from gaguide.evaluate.command import parser as evaluate_parser
from gaguide.study.commands import evaluate_command
from gaguide.study.file import load_study, shipped_studies
from gaguide.study.grid import Grid, make_grid

SMALL: dict[str, Any] = {
    "name": "small",
    "output": "runs/small",
    "sizes": ["pico", {"name": "wide", "model": "nano", "train": {"learning_rate": 1e-4}}],
    "experiments": ["original", "finetuned", "1-negation"],
    "seeds": [0, 1],
    "data": {"shards": "embedded", "block_length": 64},
    "pretrain": {"tokens": 2048},
    "tokens": 1000,
    "train": {"global_batch": 4},
    "tasks": ["demo"],
    "ds_config": "ds_configs/zero0.json",
}


def grid(tmp_path: Path, **changes: Any) -> Grid:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump({**SMALL, "output": str(tmp_path / "out"), **changes}))
    return make_grid(load_study(file, {}))


def ids(tmp_path: Path, **changes: Any) -> set[str]:
    return {cell.id for cell in grid(tmp_path, **changes).cells}


def test_the_cells_of_a_study(tmp_path: Path) -> None:
    cells = grid(tmp_path).cells
    assert len(cells) == 2 * 2 * (1 + 3)  # sizes × seeds × (base and columns)
    by_id = {cell.id: cell for cell in cells}
    assert len(by_id) == len(cells)
    tuned = next(
        cell for cell in cells if (cell.size, cell.experiment, cell.seed) == ("wide", "1-negation", 1)
    )
    assert tuned.run is not None and tuned.base is not None
    base = by_id[tuned.base]
    assert (base.role, base.size, base.seed) == ("base", "wide", 1)
    assert tuned.run.model.name == str(tmp_path / "out" / base.folder / "model")
    assert tuned.run.train.steps == 4  # 1,000 tokens of 4 × 64, rounded
    assert (tuned.run.train.learning_rate, tuned.run.guidance.experiment) == (1e-4, "1-negation")
    assert base.run is not None and base.run.model.name == "nano" and base.run.train.steps == 8
    original = next(cell for cell in cells if cell.role == "original" and cell.size == "wide")
    assert original.base is not None and original.run is None
    assert original.model == str(tmp_path / "out" / by_id[original.base].folder / "model")


@pytest.mark.parametrize("name", ["freeze", "trainable"])
def test_a_base_from_random_weights_is_trained_whole(tmp_path: Path, name: str) -> None:
    """What fine-tuning freezes would keep its random values for ever."""
    cells = grid(tmp_path, train={"global_batch": 4, name: ["embeddings"]}).cells
    for cell in cells:
        if cell.run is not None:
            expected = () if cell.role == "base" else ("embeddings",)
            assert getattr(cell.run.train, name) == expected
    given = {"tokens": 2048, "train": {name: ["embeddings"]}}
    base = grid(tmp_path, pretrain=given).cells[0]
    assert base.run is not None and getattr(base.run.train, name) == ("embeddings",)


def test_settings_of_the_evaluation_reach_its_command(tmp_path: Path) -> None:
    plain, changed = grid(tmp_path), grid(tmp_path, evaluate={"shots": 3, "on_overflow": "fail"})
    command = evaluate_command(changed, changed.cells[-1], 1)
    assert command[command.index("--shots") + 1] == "3"
    assert command[command.index("--on-overflow") + 1] == "fail"
    assert evaluate_parser().parse_args(command[command.index("--model") :]).on_overflow == "fail"
    assert plain.evaluation != changed.evaluation
    assert plain.evaluation == grid(tmp_path, evaluate={"on_overflow": "cut"}).evaluation == "d864ef96f1"


def test_pretrained_models_need_no_base_and_have_one_original(tmp_path: Path) -> None:
    found = grid(tmp_path, pretrain=None, sizes=["gpt2"])
    assert [(cell.experiment, cell.seed) for cell in found.cells] == [
        ("original", None), ("finetuned", 0), ("finetuned", 1), ("1-negation", 0), ("1-negation", 1),
    ]  # fmt: skip
    assert found.baselines("1-negation") == ("original", "finetuned")
    assert found.baselines("finetuned") == ("original",)


def test_an_id_changes_only_with_settings_that_decide_the_numbers(tmp_path: Path) -> None:
    before = ids(tmp_path)
    assert before == ids(tmp_path, output=str(tmp_path / "elsewhere"), name="other")
    assert before == ids(tmp_path, train={"global_batch": 4, "log_every": 3}, tasks=["neqa"])
    assert before < ids(tmp_path, seeds=[0, 1, 2])
    assert before < ids(tmp_path, experiments=[*SMALL["experiments"], "4-transition"])
    assert not before & ids(tmp_path, train={"global_batch": 2})
    assert not before & ids(tmp_path, ds_config="ds_configs/zero1.json") - {
        cell.id for cell in grid(tmp_path).cells if cell.role == "original"
    }
    guided = ids(tmp_path, guidance={"weight": 7})
    assert {name for name in before - guided} == {name for name in before if "1-negation" in name}


def test_experiments_of_any_plan(tmp_path: Path) -> None:
    plan = [{"pattern": "hedges", "heads": 2, "layers": [1]}]
    hedge, scratch = {"name": "hedged", "guidance": {"plan": plan}}, {"start": "scratch", "guidance": {}}
    columns = ["finetuned", hedge, {"name": "fresh", **scratch}]
    cells = grid(tmp_path, experiments=columns, measure="3-negation").cells
    hedged, fresh, finetuned = (
        next(cell for cell in cells if cell.experiment == name) for name in ("hedged", "fresh", "finetuned")
    )
    assert hedged.run is not None and hedged.run.guidance.plan[0].heads == (2,)
    assert fresh.run is not None and fresh.run.model.init == "scratch" and fresh.base is None
    assert finetuned.run is not None
    assert (finetuned.run.guidance.experiment, finetuned.run.guidance.weight) == ("3-negation", 0)


@pytest.mark.parametrize(("budget", "steps"), [("null", 244), ("cpu", 80), ("gpu-15min", 128)])
def test_the_study_of_a_pretrained_model(tmp_path: Path, budget: str, steps: int) -> None:
    """Its columns, seeds and length under each budget, with a plan of chosen heads as a profile writes it."""
    guidance = {"plan": [{"pattern": "contrast", "heads": [1], "layers": [3]}]}
    plan = tmp_path / "plan.yaml"
    names = ("chosen-most-used", "chosen-least-used", "chosen-random")
    plan.write_text(yaml.safe_dump(dict.fromkeys(names, guidance)))
    study = load_study("pretrained", {"budget": budget, "chosen": str(plan)})
    cells = make_grid(study).cells
    assert len(cells) == 17
    trained = [cell for cell in cells if cell.run is not None]
    assert {cell.run.train.steps for cell in trained if cell.run is not None} == {steps}
    seeds = Counter(cell.experiment for cell in trained)
    conclusive = {"finetuned", "1-negation", "chosen-most-used", "control-words"}
    assert {name for name, count in seeds.items() if count == 3} == conclusive
    assert set(seeds.values()) == {1, 3}


def test_each_size_has_its_chosen_heads(tmp_path: Path) -> None:
    layers = {"gpt2": 3, "gpt2-medium": 20, "gpt2-large": 30, "gpt2-xl": 40}
    for size, layer in layers.items():
        guidance = {"plan": [{"pattern": "contrast", "heads": [1], "layers": [layer]}]}
        plans = dict.fromkeys(("chosen-most-used", "chosen-least-used"), guidance)
        (tmp_path / f"{size}.yaml").write_text(yaml.safe_dump(plans))
    asked = {"sizes": ",".join(layers), "chosen": str(tmp_path / "{size}.yaml")}
    cells = [cell for cell in make_grid(load_study("pretrained", asked)).cells if cell.run is not None]
    chosen = {
        (c.size, c.run.guidance.plan[0].layers) for c in cells if c.run and c.experiment.startswith("chosen")
    }
    assert chosen == {(size, (layer,)) for size, layer in layers.items()}


def test_an_unreadable_plan_of_heads_is_one_fault(tmp_path: Path) -> None:
    """Its experiments may well be known in the file."""
    with pytest.raises(UserError) as raised:
        grid(tmp_path, chosen=str(tmp_path / "plan.yaml"), experiments=["1-negation", "chosen-most-used"])
    assert [fault.field for fault in raised.value.faults] == ["chosen"]


def test_an_experiment_can_have_fewer_seeds(tmp_path: Path) -> None:
    experiments = ["original", "finetuned", {"name": "1-negation", "seeds": [1]}]
    cells = grid(tmp_path, sizes=["pico"], experiments=experiments).cells
    assert {cell.seed for cell in cells if cell.experiment == "1-negation"} == {1}
    assert {cell.seed for cell in cells if cell.experiment == "finetuned"} == {0, 1}
    experiments[2] = {"name": "1-negation", "seeds": [7]}
    with pytest.raises(UserError, match="1-negation has seed 7, which is not one of the study's seeds"):
        grid(tmp_path, experiments=experiments)


def test_all_faults_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        grid(tmp_path, seeds=[-1], tasks=[], evaluate={"dtype": "fp8"}, sizs=3)
    assert {fault.field.split(".")[0] for fault in error.value.faults} == {
        "seeds",
        "tasks",
        "evaluate",
        "sizs",
    }
    with pytest.raises(UserError) as error:
        grid(tmp_path, experiments=["1-negatoin"], ds_config="nowhere.json", train={"global_batch": 0})
    text = str(error.value)
    assert "did you mean '1-negation'" in text and "nowhere.json" in text and "train.global_batch" in text
    with pytest.raises(UserError, match="size pico is given twice"):
        grid(tmp_path, sizes=["pico", "pico"])


def test_a_budget_is_put_over_the_file_and_overrides_over_both(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    small = {"tokens": 2048, "train": {"learning_rate": 0.5}, "output": "runs/small"}
    file.write_text(yaml.safe_dump({**SMALL, "budgets": {"small": small}}))
    whole, small_one = load_study(file, {}), load_study(file, {"budget": "small"})
    assert whole.budget is None and whole.tokens != 2048
    assert (small_one.budget, small_one.tokens, small_one.output) == ("small", 2048, "runs/small")
    assert small_one.train == {**whole.train, "learning_rate": 0.5}
    assert load_study(file, {"budget": "small", "tokens": "4096"}).tokens == 4096
    with pytest.raises(UserError, match="did you mean 'small'"):
        load_study(file, {"budget": "smal"})
    with pytest.raises(UserError, match="the study has none"):
        load_study("laptop", {"budget": "small"})
    file.write_text(yaml.safe_dump({**SMALL, "budgets": {"small": {"budget": "small"}}}))
    with pytest.raises(UserError, match="a budget cannot set budget"):
        load_study(file, {})


def test_duplicate_keys_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("name: a\nseeds: [0]\nseeds: [1]\n")
    with pytest.raises(UserError, match="duplicate key 'seeds'"):
        load_study(file, {})


def test_an_override_inside_a_value_is_a_fault() -> None:
    with pytest.raises(UserError, match="tokens is a value, not a section"):
        load_study("laptop", {"tokens.many": "3"})


def test_text_fields_keep_an_override_as_it_is() -> None:
    assert load_study("laptop", {"output": "007"}).output == "007"


def test_overrides_and_shipped_studies() -> None:
    assert "laptop" in shipped_studies()
    one = load_study("laptop", {"seeds": "7", "tasks": "demo,neqa", "train.learning_rate": "0.1"})
    assert one.seeds == (7,) and one.tasks == ("demo", "neqa") and one.train["learning_rate"] == 0.1
    for name in shipped_studies():
        if name != "pretrained":  # which needs a profile of its model
            assert make_grid(load_study(name, {})).cells
    with pytest.raises(UserError, match="shipped study"):
        load_study("no-such-study", {})


def test_sizes_by_path_or_hub_id(tmp_path: Path) -> None:
    made = grid(tmp_path, pretrain=None, sizes=["~/models/My model/", "openai-community/gpt2", "gpt2-medium"])
    assert [(size.name, size.model) for size in made.study.sizes] == [
        ("My-model", "~/models/My model/"), ("gpt2", "openai-community/gpt2"), ("gpt2-medium", None),
    ]  # fmt: skip
