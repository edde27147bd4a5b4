"""The guidance weight over a run, and plans in a run's YAML."""

from __future__ import annotations

from pathlib import Path

import pytest

from gaguide.config import EMBEDDED, load_config
from gaguide.distributed import World
from gaguide.errors import UserError
from gaguide.guidance import weight_factor
from gaguide.train.job import Job
from gaguide.train.preflight import prepare
from tests.support.ranks import DS_CONFIGS


def test_weight_schedules() -> None:
    assert [weight_factor("constant", 0, step, 4) for step in (1, 2, 3, 4)] == [1, 1, 1, 1]
    assert [weight_factor("constant", 2, step, 4) for step in (1, 2, 3, 4)] == [0.5, 1, 1, 1]
    assert [weight_factor("linear", 0, step, 4) for step in (1, 2, 3, 4)] == [1, 0.75, 0.5, 0.25]
    assert weight_factor("linear", 0, 1, 1) == 1
    assert [weight_factor("linear", 2, step, 6) for step in (1, 2, 3, 4, 6)] == [0.5, 1, 1, 0.75, 0.25]


def custom(shards: Path, folder: Path, plan: str, **more: str) -> Job:
    settings = {"data.shards": str(shards), "output": str(folder)}
    run = load_config(EMBEDDED, settings | {"guidance.plan": plan} | more)
    return prepare(run, DS_CONFIGS / "zero2.json", World())


def test_a_plan_assigns_any_pattern_to_any_head(embedded_shards: Path, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("python: [class, function, module]\n")
    plan = (
        "[{pattern: conditionals, heads: [0, 1], layers: [0, 2]},"
        " {pattern: previous-token, heads: 3, weight: 0.5},"
        " {pattern: python, heads: [2], layers: last-half}]"
    )
    more = {"guidance.lexicons": str(tmp_path / "own.yaml"), "guidance.mode": "words"}
    job = custom(embedded_shards, tmp_path / "out", plan, **more)
    assert job.plan is not None
    heads = job.plan.resolve(4, 4)
    assert {(key, head.pattern.name, head.weight) for key, head in heads.items()} == {
        *(((layer, head), "conditionals", 1.0) for layer in (0, 2) for head in (0, 1)),
        *(((layer, 3), "previous-token", 0.5) for layer in range(4)),
        *(((layer, 2), "python", 1.0) for layer in (2, 3)),
    }


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (
            "[{pattern: conditional, heads: 0}, {pattern: next-token, heads: 1}]",
            r"(?s)conditionals.*causal model",
        ),
        ("[{pattern: contrast, heads: 9}]", "4 heads"),
        ("[{pattern: contrast, heads: []}]", "at least 1 item"),
        ("[{pattern: contrast}]", r"plan\.0\.heads: is required"),
        ("[{pattern: contrast, heads: 0, layer: 1}]", "did you mean 'layers'"),
    ],
)
def test_faults_of_a_plan_name_the_entry(
    embedded_shards: Path, tmp_path: Path, plan: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        custom(embedded_shards, tmp_path, plan)


def test_a_plan_together_with_an_experiment_is_refused(embedded_shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not both"):
        custom(
            embedded_shards,
            tmp_path,
            "[{pattern: contrast, heads: 0}]",
            **{"guidance.experiment": "1-negation"},
        )
