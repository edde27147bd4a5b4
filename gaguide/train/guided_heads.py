"""The guided heads of a run, and the cues by which its held-out loss is split, from its settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gaguide.config import GuidanceSection, ValidationSection
from gaguide.errors import FaultCollector, UserError
from gaguide.guidance import (
    DEFAULT_THRESHOLD,
    Assignment,
    FixedOffset,
    GuidancePlan,
    Lexicon,
    get_lexicon,
    make_pattern,
    read_lexicons,
)
from gaguide.guidance.cues import Cues, make_cues
from gaguide.model import ModelSource
from gaguide.model.attention_support import attention_modules


def make_plan(section: GuidanceSection, tokenizer: PreTrainedTokenizerBase) -> GuidancePlan | None:
    """The plan of a run's `guidance`; None where it guides and measures no head."""
    if section.plan:
        plan = _custom_plan(section, tokenizer)
    else:
        plan = GuidancePlan.from_experiment(
            section.experiment, tokenizer, mode=section.mode, layers=section.layers
        )
    if plan.is_empty:
        return None
    return replace(
        plan,
        reduction=section.reduction,
        target=section.target,
        weight=section.weight,
        loss=section.loss,
        threshold=DEFAULT_THRESHOLD if section.threshold is None else section.threshold,
    )


def fit_plan(
    plan: GuidancePlan,
    model: ModelSource,
    architecture: PreTrainedModel,
    block_length: int,
    faults: FaultCollector,
) -> GuidancePlan:
    """The plan restricted to layers with attention; adds heads and offsets that do not fit to `faults`."""
    shape = model.config.get_text_config()
    modules = faults.attempt(attention_modules, architecture)
    if modules is not None:
        plan = faults.attempt(plan.restricted_to, modules, shape.num_hidden_layers) or plan
    faults.attempt(plan.resolve, shape.num_hidden_layers, shape.num_attention_heads)
    faults.attempt(_check_offsets, plan, block_length)
    return plan


def find_cues(section: ValidationSection, tokenizer: PreTrainedTokenizerBase) -> Cues | None:
    """The cues of a run's `validation.near_cue`; None where it names none."""
    if section.near_cue is None:
        return None
    lexicon = get_lexicon(section.near_cue, _own_lexicons(section), "validation.near_cue")
    return make_cues(lexicon, section.cue_mode, tokenizer)


def _custom_plan(section: GuidanceSection, tokenizer: PreTrainedTokenizerBase) -> GuidancePlan:
    own, assignments = _own_lexicons(section), []
    with FaultCollector() as faults:
        for at, entry in enumerate(section.plan):
            field = f"guidance.plan.{at}.pattern"
            pattern = faults.attempt(make_pattern, entry.pattern, tokenizer, section.mode, own, field)
            if pattern is not None:
                assignments.append(Assignment(pattern, entry.heads, entry.layers, entry.weight))
    return GuidancePlan(tuple(assignments))


def _own_lexicons(section: GuidanceSection | ValidationSection) -> dict[str, Lexicon]:
    return read_lexicons(Path(section.lexicons).expanduser()) if section.lexicons else {}


def _check_offsets(plan: GuidancePlan, block_length: int) -> None:
    for assignment in plan.assignments:
        pattern = assignment.pattern
        if isinstance(pattern, FixedOffset) and pattern.distance >= block_length:
            raise UserError.of(
                "guidance.plan",
                f"{pattern.name} never has a target in blocks of {block_length} tokens",
                "use a smaller offset or longer blocks",
            )
