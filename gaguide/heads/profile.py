"""The whole profile: attention on the words, behaviour, estimated and exact effects, and the choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from gaguide.ablate.meter import Reading
from gaguide.ablate.passes import without_labels
from gaguide.ablate.plan_source import PlanSource
from gaguide.ablate.request import AblateSettings, Text, find_text
from gaguide.ablate.subjects import Key, Subject
from gaguide.ablate.text import TextSums, measure_text, pattern_bands, read_attention
from gaguide.config import GuidanceSection
from gaguide.config.data import EMBEDDED_SHARDS
from gaguide.errors import Fault, FaultCollector, UserError
from gaguide.evaluate.model_folder import ModelFolder, find_model_folder, load_model, model_path, short_name
from gaguide.evaluate.results.results import versions
from gaguide.guidance import make_pattern, read_lexicons
from gaguide.guidance.cues import BANDS, NEAR
from gaguide.guidance.lexicon import Mode
from gaguide.guidance.patterns import Pattern, marked, needed_marks
from gaguide.heads.attribution import attribute
from gaguide.heads.behaviour import Behaviour, behaviours
from gaguide.heads.records import HeadProfile, ProfileRecord
from gaguide.heads.rules import choose
from gaguide.interventions import mean_outputs
from gaguide.log import SlowWork, code_fingerprint
from gaguide.model.attention_support import causal_attention_modules
from gaguide.stats.difference import Paired
from gaguide.stats.paired import rate_change
from gaguide.train.inputs import guidance_marks, missing_marks, model_inputs

_NEAR = [BANDS.index(name) for name in NEAR]


@dataclass(frozen=True)
class ProfileSettings:
    """How to profile."""

    pattern: str
    """Lexicon, or another pattern that marks tokens, such as spans:MARK of the text."""
    mode: Mode = "words"
    """Whether a lexicon's pieces or whole words are meant."""
    lexicons: Path | None = None
    """YAML file of the user's own lexicons."""
    text: str = EMBEDDED_SHARDS
    """Folder or address of shards, or `embedded`."""
    blocks: int = 32
    """Held-out blocks."""
    block_length: int | None = None
    """Tokens of a block; None: the model's positions, at most 1,024."""
    batch: int = 4
    """Blocks of a pass."""
    top: int = 10
    """Heads that are removed exactly: this number with the largest, and with the smallest, estimates."""
    heads: int = 4
    """Heads that each rule chooses."""
    seed: int = 0
    """Seed of the random choice and of the repeated tokens."""
    dtype: str = "fp32"
    """Precision of the model."""


def profile(model: str, settings: ProfileSettings, device: torch.device) -> ProfileRecord:
    """Profile every head of `model`. Raises one `UserError` with every fault before weights are loaded, and
    one where the loss is not finite: then no head can be chosen."""
    folder, pattern, text = _read(model, settings)
    network = load_model(folder, settings.dtype, device)
    layers = list(causal_attention_modules(network))
    n_heads = int(network.config.get_text_config().num_attention_heads)
    subjects = [Subject(layer, head, "other", pattern) for layer in layers for head in range(n_heads)]
    parts = [text.chosen[at : at + settings.batch] for at in range(0, len(text.chosen), settings.batch)]
    batches = [model_inputs(text.blocks, part, False, device) for part in parts]
    marks = [guidance_marks(text.blocks, part, needed_marks(pattern), device) for part in parts]
    readings = read_attention(network, subjects, batches, marks)
    plain = [without_labels(batch) for batch in batches]
    behaviour = behaviours(network, plain, settings.seed)
    means = mean_outputs(network, plain, layers)
    with SlowWork("estimating the effect of every head: blocks", len(text.chosen)) as slow:
        sums = attribute(network, batches, pattern, means, slow.done, marks)
    if not all(np.isfinite(found).all() for found in sums.values()):
        problem = f"has a loss or a gradient on this text in {settings.dtype} that is not finite"
        remedy = "give --dtype fp32, or a model that has not diverged"
        raise UserError.of("--model", problem, remedy, model)
    removed = _candidates(sums, max(settings.top, settings.heads))
    with SlowWork("removing heads exactly, passes") as slow:
        exact = measure_text(
            network, [one for one in subjects if one.key in removed], batches, ["mean"], settings.seed,
            slow.done, marks,
        )  # fmt: skip
    tokens_NK = exact.tokens[id(pattern)]
    heads = tuple(
        _head(one.key, readings[one.key], behaviour[one.key], sums[one.key], exact, tokens_NK)
        for one in subjects
    )
    return _record(folder, pattern, text, settings, heads, exact, (len(layers), n_heads))


def _read(model: str, settings: ProfileSettings) -> tuple[ModelFolder, Pattern, Text]:
    with FaultCollector() as faults:
        for name, least in (("blocks", 2), ("block_length", 4), ("batch", 1), ("top", 1), ("heads", 1)):
            value, option = getattr(settings, name), "choose" if name == "heads" else name.replace("_", "-")
            if value is not None and value < least:
                faults.add(Fault(f"--{option}", f"must be at least {least}", "give more", value))
        own = {} if settings.lexicons is None else faults.attempt(read_lexicons, settings.lexicons)
        folder = faults.attempt(find_model_folder, model_path(model))
    assert folder is not None
    asked = AblateSettings(
        text=settings.text, blocks=settings.blocks, block_length=settings.block_length, dtype=settings.dtype
    )
    with FaultCollector() as faults:
        faults.attempt(asked.check)
        pattern = faults.attempt(
            make_pattern, settings.pattern, folder.tokenizer, settings.mode, own, "--lexicon"
        )
        nothing = PlanSource(GuidanceSection(), None, "")
        text = faults.attempt(find_text, nothing, [folder], asked)
    assert pattern is not None and text is not None
    if missing := missing_marks(text.blocks, needed_marks(pattern)):
        raise UserError([replace(fault, field="--lexicon") for fault in missing])
    ids_NT = torch.from_numpy(text.blocks.read(text.chosen))
    with marked(guidance_marks(text.blocks, text.chosen, needed_marks(pattern), ids_NT.device)):
        bands_NT = pattern_bands([pattern], {"input_ids": ids_NT})
    if not int((bands_NT < len(NEAR)).sum()):
        problem = "marks no token of this text, so that nothing can be said about heads"
        raise UserError.of("--lexicon", problem, "give more --blocks, or other text", settings.pattern)
    return folder, pattern, text


def _candidates(sums: dict[Key, np.ndarray], top: int) -> set[Key]:
    """Heads to remove exactly: those with the largest estimates near cues, of either sign, and with the
    smallest of all tokens.

    Of either sign, as the estimate of a head with a large effect can have the wrong one (early layers).
    """
    near = {key: abs(float(found[:, 0].sum())) for key, found in sums.items()}
    every = {key: abs(float(found[:, 1].sum())) for key, found in sums.items()}
    rises = {key: float(found[:, 0].sum()) for key, found in sums.items()}
    used = sorted(rises, key=lambda key: -rises[key])[:top]
    return {
        *used,
        *sorted(near, key=lambda key: -near[key])[:top],
        *sorted(every, key=every.__getitem__)[:top],
    }


def _head(
    key: Key, reading: Reading, behaviour: Behaviour, sums_N2: np.ndarray, exact: TextSums,
    tokens_NK: np.ndarray,
) -> HeadProfile:  # fmt: skip
    near_tokens, tokens = tokens_NK[:, _NEAR].sum(), tokens_NK.sum()
    nothing = Paired(0.0, None, None, None)
    near = loss = None
    if (key, "mean") in exact.change:
        change_NK = exact.change[key, "mean"]
        near = _rate(change_NK[:, _NEAR].sum(1), tokens_NK[:, _NEAR].sum(1))
        loss = _rate(change_NK.sum(1), tokens_NK.sum(1))
    queries = int(reading.queries.sum())
    return HeadProfile(
        layer=key[0],
        head=key[1],
        mass=float(reading.mass.sum()) / queries if queries else None,
        target_norm=(
            float(reading.target_norm.sum()) / queries
            if queries and reading.target_norm is not None
            else None
        ),
        output_norm=(
            None if reading.output_norm is None else float(reading.output_norm.mean()) / reading.tokens
        ),
        first=behaviour.first,
        previous=behaviour.previous,
        same=behaviour.same,
        induction=behaviour.induction,
        copying=behaviour.copying,
        type=behaviour.type,
        near_estimate=float(sums_N2[:, 0].sum() / near_tokens) if near_tokens else 0.0,
        loss_estimate=float(sums_N2[:, 1].sum() / tokens),
        near=None if near is None else near.difference,
        near_low=(near or nothing).low,
        near_high=(near or nothing).high,
        loss=None if loss is None else loss.difference,
        loss_low=(loss or nothing).low,
        loss_high=(loss or nothing).high,
    )


def _rate(change_N: np.ndarray, tokens_N: np.ndarray) -> Paired | None:
    if not tokens_N.sum() or not np.isfinite(change_N).all():
        return None
    return rate_change(change_N.tolist(), tokens_N.tolist())


def _record(
    folder: ModelFolder, pattern: Pattern, text: Text, settings: ProfileSettings,
    heads: Sequence[HeadProfile], exact: TextSums, shape: tuple[int, int],
) -> ProfileRecord:  # fmt: skip
    loss_K, tokens_K = exact.loss[id(pattern)].sum(0), exact.tokens[id(pattern)].sum(0)
    near_tokens = int(tokens_K[_NEAR].sum())
    known = [one for one in heads if one.near is not None]
    pairs = [(one.near_estimate, one.near) for one in known]
    agreement = float(stats.spearmanr(*zip(*pairs, strict=True)).statistic) if len(pairs) > 2 else None
    whole, near = float(loss_K.sum() / tokens_K.sum()), float(loss_K[_NEAR].sum() / near_tokens)
    return ProfileRecord(
        model=folder.name,
        name=short_name(folder.name),
        identity=folder.identity,
        pattern=settings.pattern,
        mode=settings.mode,
        layers=shape[0],
        heads_per_layer=shape[1],
        loss=whole if np.isfinite(whole) else None,
        near_loss=near if np.isfinite(near) else None,
        near_tokens=near_tokens,
        tokens=int(tokens_K.sum()),
        agreement=agreement if agreement is not None and np.isfinite(agreement) else None,
        heads=tuple(heads),
        chosen=choose(heads, settings.heads, settings.seed),
        settings=_settings_json(text, settings),
        versions=versions() | {"code": code_fingerprint()},
        notes=exact.notes,
    )


def _settings_json(text: Text, settings: ProfileSettings) -> dict[str, Any]:
    return {
        "text": text.source, "text_fingerprint": text.fingerprint, "blocks": len(text.chosen),
        "block_length": text.blocks.block_length, "top": settings.top, "heads": settings.heads,
        "seed": settings.seed, "dtype": settings.dtype,
        "lexicons": None if settings.lexicons is None else str(settings.lexicons.resolve()),
    }  # fmt: skip
