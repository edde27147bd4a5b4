"""Attention guidance: lexicons and patterns, the plan, its loss, and attaching it to a model."""

from gaguide.guidance.attach import Guidance, guide
from gaguide.guidance.lexicon import Lexicon, get_lexicon, read_lexicons, shipped_lexicons
from gaguide.guidance.measure import HeadAttention, Measurement, measure
from gaguide.guidance.patterns import Columns, FirstToken, FixedOffset, Offset, Pattern, TokenSet
from gaguide.guidance.plan import (
    DEFAULT_WEIGHT,
    Assignment,
    GuidancePlan,
    GuidedHead,
)
from gaguide.guidance.registry import make_pattern
from gaguide.guidance.schedule import weight_factor
from gaguide.guidance.words import WordSet

__all__ = [
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
    "Measurement",
    "Offset",
    "Pattern",
    "TokenSet",
    "WordSet",
    "get_lexicon",
    "guide",
    "make_pattern",
    "measure",
    "read_lexicons",
    "shipped_lexicons",
    "weight_factor",
]
