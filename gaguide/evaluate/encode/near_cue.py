"""Held-out text by distance after cues: each sequence is scored in runs of tokens of one band.

The runs of a sequence are prefixes of each other as inputs, so that they are computed as one row.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from gaguide.evaluate.encode.encoder import EncodedPair, Encoder, encode_segments
from gaguide.evaluate.tasks.example import Example
from gaguide.evaluate.tasks.near_cue import cue_lexicon
from gaguide.evaluate.tasks.read import TaskData


class CueEncoder:
    """Encodes the examples of a near_cue task; raises `UserError` where the lexicon has no token."""

    def __init__(self, task: TaskData, encoder: Encoder) -> None:
        from gaguide.guidance.cues import make_cues  # imports torch

        self._encoder = encoder
        lexicon = cue_lexicon(task.task)
        self._cues = make_cues(lexicon, task.task.cue_mode, encoder.tokenizer)

    def encode(self, example: Example, where: str) -> list[EncodedPair]:
        """The runs of a block's segments, or of the windows of a document, in order."""
        if example.segments:
            pairs = encode_segments(self._encoder, example.segments, where)
            if any(len(pair.input_ids) > len(pair.target_ids) for pair in pairs):  # prompts do not count
                return [run for pair in pairs for run in _runs(pair, self._bands_of(pair))]
            # Segments are documents that do not see each other, so that their cues do not count further on.
            lengths = [len(pair.target_ids) for pair in pairs]
        else:
            pairs = self._encoder.encode_rolling(example.continuations[0])
            lengths = [sum(len(pair.target_ids) for pair in pairs)]
        if not pairs:
            return []
        targets = [token for pair in pairs for token in pair.target_ids]
        documents = [at for at, length in enumerate(lengths) for _ in range(length)]
        bands = self._cues.bands([pairs[0].input_ids[0], *targets], [*documents, documents[-1]])[1:]
        runs, start = [], 0
        for pair in pairs:
            end = start + len(pair.target_ids)
            runs += _runs(pair, bands[start:end])
            start = end
        return runs

    def _bands_of(self, pair: EncodedPair) -> Sequence[str]:
        """The band of each target, from all tokens before it."""
        whole = [*pair.input_ids, pair.target_ids[-1]]
        return self._cues.bands(whole, [0] * len(whole))[-len(pair.target_ids) :]


def _runs(pair: EncodedPair, bands: Sequence[str]) -> list[EncodedPair]:
    """The pair in runs of targets of one band."""
    found, start = [], 0
    before = len(pair.input_ids) - len(pair.target_ids)
    for band, members in groupby(bands):
        end = start + sum(1 for _ in members)
        found.append(EncodedPair(pair.input_ids[: before + end], pair.target_ids[start:end], band=band))
        start = end
    return found
