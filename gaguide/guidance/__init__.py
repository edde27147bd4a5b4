"""Attention guidance: lexicons and patterns, the plan, the loss, and attaching it all to a model."""

from gaguide.guidance.attach import Guidance, guide
from gaguide.guidance.lexicon import Lexicon, get_lexicon, shipped_lexicons
from gaguide.guidance.measure import HeadAttention, Measurement, measure
from gaguide.guidance.patterns import Columns, FirstToken, FixedOffset, Offset, Pattern, TokenSet
from gaguide.guidance.plan import (
    DEFAULT_WEIGHT,
    EXPERIMENTS,
    Assignment,
    GuidancePlan,
    GuidedHead,
)

__all__ = [
    "DEFAULT_WEIGHT",
    "EXPERIMENTS",
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
    "get_lexicon",
    "guide",
    "measure",
    "shipped_lexicons",
]
