"""The analysis that the paper makes: which examples hold guided words, who gains on them, where heads look.

"Contains" is asked of an example's prompt. In mode `pieces` it means a vocabulary piece of the study's lists,
which also fires inside other words; in mode `words` a whole word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from statsmodels.stats.proportion import proportion_confint
from transformers import PreTrainedTokenizerBase

from gaguide.config import GuidanceSection, RunConfig
from gaguide.config.experiments import EXPERIMENTS
from gaguide.errors import UserError
from gaguide.evaluate.results.metric_names import BETTER
from gaguide.guidance import read_lexicons
from gaguide.guidance.lexicon import Lexicon, Mode, get_lexicon, shipped_lexicons
from gaguide.guidance.patterns import Columns
from gaguide.study.compare import Pair
from gaguide.study.evaluated import Evaluated
from gaguide.study.grid import Grid
from gaguide.study.records import Change, Gain, HeadAttention, LexiconShare, LossCost
from gaguide.study.state import read_summary
from gaguide.study.statistics import over_seeds, paired_bootstrap

_MODES: tuple[Mode, ...] = ("pieces", "words")
Pairs = Mapping[tuple[str, str, str], Sequence[Pair]]


@dataclass(frozen=True)
class GuidedWords:
    """The lexicons that a run's heads are guided to, and how they are read."""

    lexicons: tuple[str, ...]
    mode: Mode
    file: str | None

    @classmethod
    def of(cls, section: GuidanceSection) -> GuidedWords:
        """Of a run's guidance; a pattern that is no lexicon has no words."""
        own = {} if section.lexicons is None else read_lexicons(Path(section.lexicons).expanduser())
        names = EXPERIMENTS.get(section.experiment, ())
        if section.plan:
            names = tuple(entry.pattern for entry in section.plan)
        known = shipped_lexicons() | own
        used = tuple(dict.fromkeys(name for name in names if name in known))
        return cls(used, section.mode, section.lexicons)


class Finder:
    """Which prompts contain which lexicon, for one tokenizer; every prompt is encoded once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._ids: dict[str, torch.Tensor] = {}
        self._patterns: dict[tuple[str, Mode, str | None], Any] = {}

    def contains(self, prompts: Sequence[str], lexicon: str, mode: Mode, file: str | None) -> np.ndarray:
        """A truth value for each prompt; none where the vocabulary holds no piece of the lexicon."""
        key = (lexicon, mode, file)
        if key not in self._patterns:
            own: dict[str, Lexicon] = {} if file is None else read_lexicons(Path(file).expanduser())
            try:
                self._patterns[key] = get_lexicon(lexicon, own=own).pattern(self._tokenizer, mode)
            except UserError:
                self._patterns[key] = None
        pattern = self._patterns[key]
        if pattern is None:
            return np.zeros(len(prompts), bool)
        return np.asarray([self._fires(pattern, prompt) for prompt in prompts])

    def _fires(self, pattern: Any, prompt: str) -> bool:
        if prompt not in self._ids:
            encoded = self._tokenizer(prompt, add_special_tokens=False)["input_ids"]
            self._ids[prompt] = torch.tensor([encoded], dtype=torch.int64)
        ids_BT = self._ids[prompt]
        if ids_BT.shape[1] == 0:
            return False
        target = pattern.target(ids_BT)
        assert isinstance(target, Columns)
        return bool(target.marked_BT.any())


def lexicon_shares(one: Evaluated, used: Sequence[GuidedWords], finder: Finder) -> list[LexiconShare]:
    """How much of each task contains each of the paper's lexicons and of the study's own, in both modes."""
    files = {name: words.file for words in used for name in words.lexicons}
    papers = {name for names in EXPERIMENTS.values() for name in names}
    lexicons = sorted(papers | files.keys())
    rows = []
    for task, examples in one.examples.items():
        for lexicon in lexicons:
            for mode in _MODES:
                hits = finder.contains(examples.prompts, lexicon, mode, files.get(lexicon))
                n, found = len(hits), int(hits.sum())
                low, high = proportion_confint(found, n, method="wilson")
                share = found / n
                rows.append(
                    LexiconShare(
                        task, lexicon, mode, n, found, share, min(share, float(low)), max(share, float(high))
                    )
                )
    return rows


def gains(pairs: Pairs, finder: Finder) -> Iterator[Gain]:
    """The gain over each baseline, on examples with and without the words that the column guides to."""
    for (size, experiment, baseline), listed in pairs.items():
        words = _words(listed[0].now.cell.run)
        if not words.lexicons:
            continue
        for task in listed[0].tasks:
            examples = listed[0].now.examples[task]
            hits = _contains_any(finder, examples.prompts, words)
            for metric in examples.outcomes:
                if metric not in BETTER or metric == "acc_norm":
                    continue
                change = _change(listed, task, metric)
                for name, where in (("with", hits), ("without", ~hits)):
                    yield _gain(size, experiment, baseline, task, metric, name, words, listed, change[where])


def _gain(
    size: str, experiment: str, baseline: str, task: str, metric: str, name: str, words: GuidedWords,
    listed: Sequence[Pair], change: np.ndarray,
) -> Gain:  # fmt: skip
    found = paired_bootstrap(change.tolist(), [0.0] * len(change)) if len(change) else None
    kind: Literal["with", "without"] = "with" if name == "with" else "without"
    return Gain(
        size, experiment, baseline, task, metric, BETTER[metric], kind, list(words.lexicons), len(listed),
        len(change), found.difference if found else None, found.low if found else None,
        found.high if found else None,
    )  # fmt: skip


def changes(pairs: Pairs, finder: Finder) -> Iterator[Change]:
    """Every example under every guided column against every baseline."""
    for (size, experiment, baseline), listed in pairs.items():
        words = _words(listed[0].now.cell.run)
        if not words.lexicons:
            continue
        for task in listed[0].tasks:
            examples = listed[0].now.examples[task]
            has = {
                name: finder.contains(examples.prompts, name, words.mode, words.file)
                for name in words.lexicons
            }
            loss = next((name for name in examples.outcomes if name not in ("acc", "acc_norm")), None)
            assert loss is not None
            change = _change(listed, task, loss)
            before, now = _counts(listed, task)
            for at, example in enumerate(examples.ids):
                yield Change(
                    size, experiment, baseline, task, example, examples.prompts[at],
                    [name for name in words.lexicons if has[name][at]], len(listed),
                    before[at], now[at], float(change[at]),
                )  # fmt: skip


def head_attention(grid: Grid) -> Iterator[HeadAttention]:
    """Where guided, or only measured, heads look before and after training, of every trained cell."""
    for cell in grid.cells:
        record = read_summary(grid.path(cell)).get("validation", {})
        if cell.run is None or not record:
            continue
        before = {(head["layer"], head["head"]): head for head in record["before"]["per_head"]}
        for head in record["after"]["per_head"]:
            key = (head["layer"], head["head"])
            yield HeadAttention(
                cell.id, cell.size, cell.experiment, cell.seed, cell.run.guidance.weight > 0, *key,
                head["pattern"], before.get(key, {}).get("attention"), head["attention"],
            )  # fmt: skip


def loss_costs(pairs: Pairs) -> Iterator[LossCost]:
    """Held-out loss against each baseline, paired by seed."""
    for (size, experiment, baseline), listed in pairs.items():
        both = [(pair.now.held_out.get("lm_loss"), pair.before.held_out.get("lm_loss")) for pair in listed]
        known = [(now, before) for now, before in both if now is not None and before is not None]
        if not known:
            continue
        found = over_seeds([now - before for now, before in known])
        loss, other = (float(np.mean(column)) for column in zip(*known, strict=True))
        yield LossCost(
            size, experiment, baseline, len(known), loss, other, found.difference, found.difference / other,
            found.low, found.high,
        )  # fmt: skip


def _words(run: RunConfig | None) -> GuidedWords:
    """Words that a run really guides to: none where it only measures."""
    if run is None or run.guidance.weight == 0:
        return GuidedWords((), "pieces", None)
    return GuidedWords.of(run.guidance)


def _contains_any(finder: Finder, prompts: Sequence[str], words: GuidedWords) -> np.ndarray:
    found = [finder.contains(prompts, name, words.mode, words.file) for name in words.lexicons]
    return np.any(found, axis=0)


def _change(listed: Sequence[Pair], task: str, metric: str) -> np.ndarray:
    """Each example's change, averaged over seeds."""
    return np.mean(
        [
            pair.now.examples[task].outcomes[metric] - pair.before.examples[task].outcomes[metric]
            for pair in listed
        ],
        axis=0,
    )


def _counts(listed: Sequence[Pair], task: str) -> tuple[list[int | None], list[int | None]]:
    """In how many seeds each example was right, baseline and column; None where there is no right."""
    nothing: list[int | None] = [None] * len(listed[0].now.examples[task].ids)
    if "acc" not in listed[0].now.examples[task].outcomes:
        return nothing, nothing
    before = np.sum([pair.before.examples[task].outcomes["acc"] for pair in listed], axis=0)
    now = np.sum([pair.now.examples[task].outcomes["acc"] for pair in listed], axis=0)
    return [int(count) for count in before], [int(count) for count in now]
