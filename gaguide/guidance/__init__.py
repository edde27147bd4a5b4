"""Attention guidance: lexicons and patterns, the plan, its loss, and attaching it to a model."""

from typing import TYPE_CHECKING

from gaguide.lazy import lazy_names

if TYPE_CHECKING:
    from gaguide.guidance.attach import Guidance, guide
    from gaguide.guidance.lexicon import Lexicon, get_lexicon, read_lexicons, shipped_lexicons
    from gaguide.guidance.measurement import HeadAttention, Measurement, measure
    from gaguide.guidance.patterns import (
        Columns,
        FirstToken,
        FixedOffset,
        MarkedTokens,
        Offset,
        Pattern,
        TokenSet,
        marked,
    )
    from gaguide.guidance.plan import DEFAULT_THRESHOLD, DEFAULT_WEIGHT, Assignment, GuidancePlan, GuidedHead
    from gaguide.guidance.registry import make_pattern
    from gaguide.guidance.schedule import weight_factor
    from gaguide.guidance.words import WordSet

__all__ = [
    "DEFAULT_THRESHOLD",
    "DEFAULT_WEIGHT",
    "Assignment",
    "Columns",
    "FirstToken",
    "FixedOffset",
    "Guidance",
    "GuidancePlan",
    "GuidedHead",
    "HeadAttention",
    "Lexicon",
    "MarkedTokens",
    "Measurement",
    "Offset",
    "Pattern",
    "TokenSet",
    "WordSet",
    "get_lexicon",
    "guide",
    "make_pattern",
    "marked",
    "measure",
    "read_lexicons",
    "shipped_lexicons",
    "weight_factor",
]

__getattr__ = lazy_names(__name__)
