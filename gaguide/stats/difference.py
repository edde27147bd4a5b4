"""The record of a paired comparison; imports nothing, so that records of studies are read fast."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Paired:
    """A paired difference and its test."""

    difference: float
    """Mean difference, experiment minus baseline."""
    low: float | None
    """Lower end of its 95% interval."""
    high: float | None
    """Upper end of its 95% interval."""
    p: float | None
    """Two-sided p value."""
    p_exact: float | None = None
    """McNemar's exact p value."""
    helped: int | None = None
    """Examples that only the experiment answers correctly (McNemar)."""
    hurt: int | None = None
    """Examples that only the baseline answers correctly (McNemar)."""
    groups: int | None = None
    """Number of groups of examples that were taken as the unit; None where every example is one."""
