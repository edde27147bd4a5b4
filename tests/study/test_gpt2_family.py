"""The study's verdicts on four real model sizes, from published losses of every example."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from gaguide.evaluate.results.metric_names import Better
from gaguide.stats.paired import mcnemar, paired_bootstrap
from gaguide.study.scaling import decide, fit_trend

FAMILY = Path(__file__).parents[3] / "shared" / "data" / "gpt2_family"
PARAMETERS = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
}
pytestmark = pytest.mark.skipif(
    not FAMILY.is_dir(), reason="needs the published results beside the repository (shared/data/gpt2_family)"
)


def scores(task: str, column: str) -> dict[str, list[float]]:
    """Model → one score per example; rows without numbers are examples that were skipped."""
    found = {}
    for model in PARAMETERS:
        with (FAMILY / task / f"{model}.csv").open() as file:
            found[model] = [float(row[column]) for row in csv.DictReader(file) if row[column]]
    return found


@pytest.mark.parametrize(
    ("task", "column", "better", "means", "slope", "verdict"),
    [
        ("conjunction-fallacy-0shot", "loss", "low", (0.8093, 0.7778, 0.9008, 0.9144), 0.1154, "inverse"),
        ("conjunction-fallacy-0shot", "correct", "high", (0.500, 0.505, 0.502, 0.500), -0.0004, "flat"),
        ("dice-0shot", "loss", "low", (0.8323, 0.8279, 0.7162, 0.6752), -0.1559, "positive"),
        ("dice-0shot", "correct", "high", (0.3224, 0.3462, 0.5256, 0.6538), 0.3131, "positive"),
        ("lambada", "loss", "low", (3.6903, 2.9050, 2.5623, 2.3641), -1.2144, "positive"),
    ],
)
def test_verdicts_on_real_models(
    task: str, column: str, better: Better, means: tuple[float, ...], slope: float, verdict: str
) -> None:
    found = scores(task, column)
    assert [np.mean(values) for values in found.values()] == pytest.approx(means, abs=5e-5)
    rows = [
        (PARAMETERS[model], value, at) for model, values in found.items() for at, value in enumerate(values)
    ]
    parameters, values, examples = zip(*rows, strict=True)
    trend = fit_trend(parameters, values, better, examples)
    assert trend.slope == pytest.approx(slope, abs=5e-5)
    assert decide([trend], [better])[0].verdict == verdict


def test_the_largest_model_is_worse_than_the_smallest_where_accuracy_cannot_tell() -> None:
    losses = scores("conjunction-fallacy-0shot", "loss")
    paired = paired_bootstrap(losses["gpt2-xl"], losses["gpt2"])
    assert paired.difference == pytest.approx(0.105088, abs=1e-6)
    assert paired.low is not None and paired.p is not None and paired.low > 0 and paired.p < 0.001
    right = scores("conjunction-fallacy-0shot", "correct")
    same = mcnemar([one == 1 for one in right["gpt2-xl"]], [one == 1 for one in right["gpt2"]])
    assert same.difference == 0 and same.helped == same.hurt and same.p == 1
