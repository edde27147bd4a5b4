"""The paper's analysis: which examples contain guided words, where guidance helps, where heads look.

An example contains a lexicon if its prompt does. Mode `pieces` looks for the lexicon's vocabulary pieces,
which also occur inside other words; mode `words` for whole words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from gaguide.config import GuidanceSection, RunConfig
from gaguide.config.experiments import EXPERIMENTS
from gaguide.errors import UserError
from gaguide.evaluate.results.intervals import proportion
from gaguide.evaluate.results.metric_names import ACCURACIES, BETTER
from gaguide.guidance import read_lexicons
from gaguide.guidance.lexicon import Lexicon, Mode, get_lexicon, shipped_lexicons
from gaguide.guidance.patterns import Columns
from gaguide.numbers import finite
from gaguide.stats.paired import over_seeds, paired_bootstrap
from gaguide.study.analysis_records import Change, Gain, HeadAttention, LexiconShare, LossCost
from gaguide.study.compare import Contrast
from gaguide.study.evaluated import HELD_OUT_METRIC, Evaluated
from gaguide.study.grid import Grid
from gaguide.study.records import HELD_OUT, LeftOut
from gaguide.study.state import read_summary

_MODES: tuple[Mode, ...] = ("pieces", "words")
_SPLIT: Mapping[Literal["with", "without"], bool] = {"with": True, "without": False}


@dataclass(frozen=True)
class GuidedWords:
    """The lexicons to which a run's heads are guided."""

    lexicons: tuple[str, ...]
    """Names of the lexicons; empty for a run without guidance."""
    mode: Mode
    """Whether their pieces or whole words are guided."""
    file: str | None
    """File with further lexicons."""

    @classmethod
    def of(cls, section: GuidanceSection) -> GuidedWords:
        """The words of a run's guidance; patterns other than lexicons have none."""
        own = {} if section.lexicons is None else read_lexicons(Path(section.lexicons).expanduser())
        names = EXPERIMENTS.get(section.experiment, ())
        if section.plan:
            names = tuple(entry.pattern for entry in section.plan)
        known = shipped_lexicons() | own
        used = tuple(dict.fromkeys(name for name in names if name in known))
        return cls(used, section.mode, section.lexicons)

    @classmethod
    def of_run(cls, run: RunConfig | None) -> GuidedWords:
        """The words that a run guides to: none where it only measures."""
        if run is None or run.guidance.weight == 0:
            return cls((), "pieces", None)
        return cls.of(run.guidance)


class WordFinder:
    """Finds the prompts that contain a lexicon, for one tokenizer; every prompt is encoded, and searched for
    a lexicon, once: every contrast of a study asks for the same ones."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._ids: dict[str, torch.Tensor] = {}
        self._patterns: dict[tuple[str, Mode, str | None], Any] = {}
        self._found: dict[tuple[str, Mode, str | None], dict[str, bool]] = {}

    def contains(self, prompts: Sequence[str], lexicon: str, mode: Mode, file: str | None) -> np.ndarray:
        """Boolean [prompts]; all False where the vocabulary has no piece of the lexicon."""
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
        known = self._found.setdefault(key, {})
        for prompt in prompts:
            if prompt not in known:
                known[prompt] = self._matches(pattern, prompt)
        return np.asarray([known[prompt] for prompt in prompts])

    def contains_any(self, prompts: Sequence[str], words: GuidedWords) -> np.ndarray:
        """Boolean [prompts]: whether a prompt contains any of the lexicons; there must be one."""
        found = [self.contains(prompts, name, words.mode, words.file) for name in words.lexicons]
        return np.any(found, axis=0)

    def _matches(self, pattern: Any, prompt: str) -> bool:
        if prompt not in self._ids:
            encoded = self._tokenizer(prompt, add_special_tokens=False)["input_ids"]
            self._ids[prompt] = torch.tensor([encoded], dtype=torch.int64)
        ids_BT = self._ids[prompt]
        if ids_BT.shape[1] == 0:
            return False
        target = pattern.target(ids_BT)
        assert isinstance(target, Columns)
        return bool(target.marked_BT.any())


def lexicon_shares(one: Evaluated, used: Sequence[GuidedWords], finder: WordFinder) -> list[LexiconShare]:
    """The share of each task's examples that contain a lexicon, in both modes.

    Lexicons are those of the paper's experiments and those in `used`.
    """
    files = {name: words.file for words in used for name in words.lexicons}
    papers = {name for names in EXPERIMENTS.values() for name in names}
    lexicons = sorted(papers | files.keys())
    rows = []
    for task, examples in one.examples.items():
        for lexicon in lexicons:
            for mode in _MODES:
                hits = finder.contains(examples.prompts, lexicon, mode, files.get(lexicon))
                found = proportion(hits.tolist(), examples.groups)
                rows.append(
                    LexiconShare(
                        task=task,
                        lexicon=lexicon,
                        mode=mode,
                        examples=len(hits),
                        containing=int(hits.sum()),
                        share=found.value,
                        low=found.low,
                        high=found.high,
                    )
                )
    return rows


def gains(contrasts: Sequence[Contrast], finder: WordFinder) -> Iterator[Gain]:
    """The gain over each baseline, on examples with and without the words that the experiment guides to.

    A loss per token counts each example with its tokens.
    """
    for contrast, words, task in _guided_tasks(contrasts):
        examples = contrast.examples(task)
        hits = finder.contains_any(examples.prompts, words)
        for metric in examples.outcomes:
            if metric not in BETTER or metric in ACCURACIES[1:]:
                continue
            change = _mean_change(contrast, task, metric)
            seeds = len(contrast.pairs_of(task))
            weights = examples.weights.get(metric)
            counted = np.ones(len(change), bool) if weights is None else weights > 0
            for group, where in _SPLIT.items():
                places = (hits == where) & counted
                chosen = change[places]
                clusters = None if examples.groups is None else np.asarray(examples.groups)[places]
                found = (
                    paired_bootstrap(
                        chosen.tolist(),
                        [0.0] * len(chosen),
                        groups=clusters,
                        weights=None if weights is None else weights[places].tolist(),
                    )
                    if len(chosen)
                    else None
                )
                yield Gain(
                    size=contrast.size,
                    experiment=contrast.experiment,
                    baseline=contrast.baseline,
                    task=task,
                    metric=metric,
                    better=BETTER[metric],
                    words=group,
                    lexicons=list(words.lexicons),
                    seeds=seeds,
                    examples=len(chosen),
                    gain=found.difference if found else None,
                    low=found.low if found else None,
                    high=found.high if found else None,
                )


def changes(contrasts: Sequence[Contrast], finder: WordFinder) -> Iterator[Change]:
    """Every example under every guided experiment, compared with every baseline."""
    for contrast, words, task in _guided_tasks(contrasts):
        examples = contrast.examples(task)
        contains = {
            name: finder.contains(examples.prompts, name, words.mode, words.file) for name in words.lexicons
        }
        loss = next((name for name in examples.outcomes if name not in ACCURACIES), None)
        # Generated numbers have no loss: there a change is that of the share of wrong answers.
        change = _mean_change(contrast, task, loss) if loss else -_mean_change(contrast, task, "acc")
        before, now = _correct_seeds(contrast, task)
        for index, example in enumerate(examples.ids):
            yield Change(
                size=contrast.size,
                experiment=contrast.experiment,
                baseline=contrast.baseline,
                task=task,
                example=example,
                prompt=examples.prompts[index],
                contains=[name for name in words.lexicons if contains[name][index]],
                seeds=len(contrast.pairs_of(task)),
                baseline_correct=before[index],
                correct=now[index],
                change=float(change[index]),
            )


def head_attention(grid: Grid, left: Sequence[LeftOut] = ()) -> Iterator[HeadAttention]:
    """Attention of guided, or only measured, heads before and after training, for every trained cell.

    Cells that are left out as a whole have none.
    """
    diverged = {row.cell for row in left if row.task is None}
    for cell in grid.cells:
        record = read_summary(grid.path(cell)).get("validation", {})
        if cell.run is None or not record or cell.id in diverged:
            continue
        # Either is null where its record was lost, or was measured on other blocks.
        heads_before, heads_after = (
            (record.get(when) or {}).get("per_head") or () for when in ("before", "after")
        )
        before = {(head["layer"], head["head"]): head for head in heads_before}
        for head in heads_after:
            key = (head["layer"], head["head"])
            yield HeadAttention(
                cell=cell.id,
                size=cell.size,
                experiment=cell.experiment,
                seed=cell.seed,
                guided=cell.run.guidance.weight > 0,
                layer=head["layer"],
                head=head["head"],
                pattern=head["pattern"],
                before=finite(before.get(key, {}).get("attention")),
                after=finite(head["attention"]),
            )


def loss_costs(contrasts: Sequence[Contrast]) -> Iterator[LossCost]:
    """Held-out loss compared with each baseline, paired by seed: of all tokens, then near cues."""
    for contrast in contrasts:
        if known := contrast.values(HELD_OUT, HELD_OUT_METRIC):
            yield _loss_cost(contrast, known)
        for lexicon, losses in contrast.near_cues().items():
            yield _loss_cost(contrast, losses, lexicon)


def _loss_cost(contrast: Contrast, known: Sequence[tuple[float, float]], near: str | None = None) -> LossCost:
    """`known`: (experiment, baseline) losses of each seed, at least one."""
    found = over_seeds([now - before for now, before in known])
    loss, other = (float(np.mean(column)) for column in zip(*known, strict=True))
    return LossCost(
        size=contrast.size,
        experiment=contrast.experiment,
        baseline=contrast.baseline,
        seeds=len(known),
        loss=loss,
        baseline_loss=other,
        difference=found.difference,
        relative=found.difference / other,
        low=found.low,
        high=found.high,
        near=near,
    )


def _guided_tasks(contrasts: Sequence[Contrast]) -> Iterator[tuple[Contrast, GuidedWords, str]]:
    """(contrast, its guided words, task) for every task of every contrast that guides to words."""
    for contrast in contrasts:
        words = GuidedWords.of_run(contrast.run)
        if words.lexicons:
            for task in contrast.tasks:
                yield contrast, words, task


def _mean_change(contrast: Contrast, task: str, metric: str) -> np.ndarray:
    """Each example's change from the baseline [examples], averaged over seeds."""
    return np.mean(
        [
            pair.now.examples[task].outcomes[metric] - pair.before.examples[task].outcomes[metric]
            for pair in contrast.pairs_of(task)
        ],
        axis=0,
    )


def _correct_seeds(contrast: Contrast, task: str) -> tuple[list[int | None], list[int | None]]:
    """In how many seeds each example is correct, of baseline and experiment; None without accuracy."""
    examples = contrast.examples(task)
    if "acc" not in examples.outcomes:
        nothing: list[int | None] = [None] * len(examples.ids)
        return nothing, nothing
    before = np.sum([pair.before.examples[task].outcomes["acc"] for pair in contrast.pairs_of(task)], axis=0)
    now = np.sum([pair.now.examples[task].outcomes["acc"] for pair in contrast.pairs_of(task)], axis=0)
    return [int(count) for count in before], [int(count) for count in now]
