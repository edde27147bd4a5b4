"""How a score moves with size: inverse, positive, U-shaped, inverted U or flat, by regression. Pure.

The score is regressed on log10(parameters). A line decides between positive, inverse and flat. A bend is
claimed only where Lind and Mehlum's test (2010, after Sasabuchi 1980) shows it: the slopes of a parabola at
the smallest and at the largest size differ in sign, each significantly. Its p value is the larger of the two
one-sided ones, doubled because either shape could have been found. A curve that only levels off passes that
test too often (Simonsohn 2018), so the mean score must also be lowest, or highest, at an inner size. p values
are then Holm-corrected over the tasks of an experiment. "Flat" means that no trend was shown, not that there
is none. statsmodels fits and tests; it has no test of a bend, so that is composed here from its fits.

With two or more seeds for each size a model is one observation (ordinary least squares). With one seed each
example of a size is one, and standard errors are clustered by example; they do not cover the variation
between seeds.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import statsmodels.api as sm

from gaguide.evaluate.results.metric_names import Better
from gaguide.stats.groups import ALPHA
from gaguide.stats.paired import holm
from gaguide.stats.power import estimate_detectable
from gaguide.study.records import Verdict

SIZES_FOR_LINE, SIZES_FOR_BEND = 3, 4


@dataclass(frozen=True)
class Trend:
    """A fitted trend; slopes are per tenfold of parameters."""

    slope: float | None = None
    """Slope of the line; None with fewer than three sizes."""
    low: float | None = None
    """Lower end of the slope's 95% interval."""
    high: float | None = None
    """Upper end of the slope's 95% interval."""
    p_slope: float | None = None
    """Two-sided p value of the slope."""
    detectable: float | None = None
    """Smallest true slope that the regression shows with power 0.8, before correction."""
    bend: Literal["U-shaped", "inverted U"] | None = None
    """Shape of the parabola, upside down for scores where low is better."""
    p_bend: float | None = None
    """p value of the bend; None with fewer than four sizes."""
    turning_point: float | None = None
    """Parameters at which the parabola turns; None where it turns outside the sizes."""


@dataclass(frozen=True)
class Decision:
    """The verdict on a trend within its family of tasks."""

    verdict: Verdict
    """The verdict."""
    p_slope: float | None
    """The trend's `p_slope`, Holm-corrected over the family."""
    p_bend: float | None
    """The trend's `p_bend`, Holm-corrected over the family."""


def fit_trend(
    parameters: Sequence[int],
    scores: Sequence[float],
    better: Better,
    clusters: Sequence[Hashable] | None = None,
    weights: Sequence[float] | None = None,
) -> Trend:
    """The trend of scores over sizes.

    scores: one for each model, or one for each example of a model; then `clusters` identifies the example.
    parameters: of the model, for each score. weights: of each score, such as the tokens of a loss per token.
    """
    x = np.log10(np.asarray(parameters, float))
    y = np.asarray(scores, float)
    sizes = len(np.unique(x))
    if sizes < SIZES_FOR_LINE:
        return Trend()
    if np.ptp(y) == 0:
        # Without spread there is no interval.
        return Trend(0.0, None, None, 1.0, p_bend=1.0 if sizes >= SIZES_FOR_BEND else None)
    centre = x.mean()
    w = np.ones_like(x) if weights is None else np.asarray(weights, float)
    line = _fit(np.column_stack([np.ones_like(x), x - centre]), y, clusters, w)
    low, high = (float(end) for end in line.conf_int(ALPHA)[1])
    trend = Trend(float(line.params[1]), low, high, _number(line.pvalues[1]), _detectable(line))
    return _with_bend(trend, x - centre, centre, y, better, clusters, w) if sizes >= SIZES_FOR_BEND else trend


def _detectable(line: Any) -> float | None:
    error, freedom = float(line.bse[1]), float(getattr(line, "df_resid_inference", line.df_resid))
    return estimate_detectable(error, freedom) if np.isfinite(error) and freedom >= 1 else None


def _with_bend(
    trend: Trend,
    x: np.ndarray,
    centre: float,
    y: np.ndarray,
    better: str,
    clusters: Sequence[Hashable] | None,
    weights: np.ndarray,
) -> Trend:
    curve = _parabola(x, y, 0.0, clusters, weights)
    curvature = float(curve.params[2])
    sign = 1.0 if curvature > 0 else -1.0
    # One-sided: falling at the small end and rising at the large one, for a curve that opens upwards.
    ends = [_parabola(x, y, end, clusters, weights) for end in (x.min(), x.max())]
    p = max(_one_sided(ends[0], -sign), _one_sided(ends[1], sign))
    means = [np.average(y[x == size], weights=weights[x == size]) for size in np.unique(x)]
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


def decide(trends: Sequence[Trend], better: Sequence[Better]) -> list[Decision]:
    """The verdicts on the trends of one family of tasks."""
    slopes = holm([trend.p_slope for trend in trends])
    bends = holm([trend.p_bend for trend in trends])
    return [
        Decision(_verdict(trend, direction, slope, bend), slope, bend)
        for trend, direction, slope, bend in zip(trends, better, slopes, bends, strict=True)
    ]


def _verdict(trend: Trend, better: str, p_slope: float | None, p_bend: float | None) -> Verdict:
    if p_slope is None or trend.slope is None:
        return "not enough sizes"
    if p_bend is not None and p_bend < ALPHA and trend.bend is not None:
        return trend.bend
    if p_slope < ALPHA:
        return "positive" if (trend.slope > 0) == (better == "high") else "inverse"
    return "flat"


def _parabola(
    x: np.ndarray, y: np.ndarray, at: float, clusters: Sequence[Hashable] | None, weights: np.ndarray
) -> Any:
    """The parabola fitted in powers of x - at, so that its second coefficient is the slope at `at`."""
    return _fit(np.column_stack([np.ones_like(x), x - at, (x - at) ** 2]), y, clusters, weights)


def _fit(design: np.ndarray, y: np.ndarray, clusters: Sequence[Hashable] | None, weights: np.ndarray) -> Any:
    model = sm.WLS(y, design, weights=weights)
    if clusters is None:
        return model.fit()
    _, groups = np.unique(np.asarray([str(one) for one in clusters]), return_inverse=True)
    return model.fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True)


def _one_sided(fitted: Any, sign: float) -> float:
    """One-sided p value of the slope having this sign, from the two-sided t-test."""
    two_sided = _number(fitted.pvalues[1])
    return two_sided / 2 if fitted.params[1] * sign > 0 else 1 - two_sided / 2


def _number(p: float) -> float:
    """A p value; 1 where a perfect or empty fit has none."""
    return float(p) if np.isfinite(p) else 1.0
