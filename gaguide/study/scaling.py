"""How a score moves with size: inverse, positive, U-shaped, inverted U or flat, by regression. Pure.

The score is regressed on log10(parameters). A line decides between positive, inverse and flat. A bend is
claimed only where Lind and Mehlum's test (2010, after Sasabuchi 1980) shows it: the slopes of a parabola at
the smallest and at the largest size differ in sign, each significantly; its p value is the larger of the two
one-sided ones, doubled because either shape could have been found. A curve that only levels off passes that
test too often (Simonsohn 2018), so the mean score must also be lowest, or highest, at an inner size. Then p
values are Holm-corrected over the tasks of an experiment. "Flat" means that no trend was shown, not that
there is none.

With two seeds or more for each size a model is one observation (ordinary least squares). With one seed an
example of a size is one, and standard errors are clustered by example: they then know nothing of how
another seed would have come out.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import statsmodels.api as sm

from gaguide.evaluate.results.metric_names import Better
from gaguide.study.records import Verdict
from gaguide.study.statistics import ALPHA, holm

SIZES_FOR_LINE, SIZES_FOR_BEND = 3, 4


@dataclass(frozen=True)
class Trend:
    """A fitted trend. Slopes are per tenfold of parameters; `bend` is that of the score for the better.

    p_bend: None with fewer than four sizes; p_slope: None with fewer than three.
    """

    slope: float | None = None
    low: float | None = None
    high: float | None = None
    p_slope: float | None = None
    bend: Literal["U-shaped", "inverted U"] | None = None
    p_bend: float | None = None
    turning_point: float | None = None


def fit_trend(
    parameters: Sequence[int],
    scores: Sequence[float],
    better: Better,
    clusters: Sequence[Hashable] | None = None,
) -> Trend:
    """The trend of scores over sizes, one score for each model, or for each example with its `clusters`."""
    x = np.log10(np.asarray(parameters, float))
    y = np.asarray(scores, float)
    sizes = len(np.unique(x))
    if sizes < SIZES_FOR_LINE:
        return Trend()
    if np.ptp(y) == 0:
        return Trend(0.0, 0.0, 0.0, 1.0, p_bend=1.0 if sizes >= SIZES_FOR_BEND else None)
    centre = x.mean()
    line = _fit(np.column_stack([np.ones_like(x), x - centre]), y, clusters)
    low, high = (float(end) for end in line.conf_int(ALPHA)[1])
    trend = Trend(float(line.params[1]), low, high, _number(line.pvalues[1]))
    return _with_bend(trend, x - centre, centre, y, better, clusters) if sizes >= SIZES_FOR_BEND else trend


def _with_bend(
    trend: Trend,
    x: np.ndarray,
    centre: float,
    y: np.ndarray,
    better: str,
    clusters: Sequence[Hashable] | None,
) -> Trend:
    curve = _parabola(x, y, 0.0, clusters)
    curvature = float(curve.params[2])
    sign = 1.0 if curvature > 0 else -1.0
    # One-sided: falling at the small end and rising at the large one, for a curve that opens upwards.
    ends = [_parabola(x, y, end, clusters) for end in (x.min(), x.max())]
    p = max(_one_sided(ends[0], -sign), _one_sided(ends[1], sign))
    means = [y[x == size].mean() for size in np.unique(x)]
    extreme = int(np.argmin(means) if curvature > 0 else np.argmax(means))
    if extreme in (0, len(means) - 1):
        p = 0.5
    upwards = (curvature > 0) == (better == "high")
    turning = -float(curve.params[1]) / (2 * curvature) if curvature else None
    inside = turning is not None and x.min() < turning < x.max()
    return replace(
        trend,
        bend="U-shaped" if upwards else "inverted U",
        p_bend=min(1.0, 2 * p),
        turning_point=float(10 ** (turning + centre)) if inside and turning is not None else None,
    )


def decide(
    trends: Sequence[Trend], better: Sequence[Better]
) -> list[tuple[Verdict, float | None, float | None]]:
    """(verdict, corrected p of the slope, corrected p of the bend) of the trends of one family of tasks."""
    slopes = holm([trend.p_slope for trend in trends])
    bends = holm([trend.p_bend for trend in trends])
    return [
        (_verdict(trend, good, slope, bend), slope, bend)
        for trend, good, slope, bend in zip(trends, better, slopes, bends, strict=True)
    ]


def _verdict(trend: Trend, better: str, p_slope: float | None, p_bend: float | None) -> Verdict:
    if p_slope is None or trend.slope is None:
        return "not enough sizes"
    if p_bend is not None and p_bend < ALPHA and trend.bend is not None:
        return trend.bend
    if p_slope < ALPHA:
        return "positive" if (trend.slope > 0) == (better == "high") else "inverse"
    return "flat"


def _parabola(x: np.ndarray, y: np.ndarray, at: float, clusters: Sequence[Hashable] | None) -> Any:
    """The fitted parabola about `at`: its second coefficient is the slope there."""
    return _fit(np.column_stack([np.ones_like(x), x - at, (x - at) ** 2]), y, clusters)


def _fit(design: np.ndarray, y: np.ndarray, clusters: Sequence[Hashable] | None) -> Any:
    model = sm.OLS(y, design)
    if clusters is None:
        return model.fit()
    _, groups = np.unique(np.asarray([str(one) for one in clusters]), return_inverse=True)
    return model.fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True)


def _one_sided(fitted: Any, sign: float) -> float:
    """p of the slope having this sign, from the two-sided t-test."""
    two_sided = _number(fitted.pvalues[1])
    return two_sided / 2 if fitted.params[1] * sign > 0 else 1 - two_sided / 2


def _number(p: float) -> float:
    """A p value; where a perfect or empty fit leaves none, 1."""
    return float(p) if np.isfinite(p) else 1.0
