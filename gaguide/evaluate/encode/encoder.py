"""From (prompt, continuation) to input tokens and scored tokens.

The rules are those of lm-evaluation-harness 0.4.13, so that scores can be compared: whitespace at the end
of the prompt moves to the continuation; prompt and continuation are encoded together and split at the
prompt's own length; an empty prompt becomes the beginning-of-text token; what is too long is truncated on the
left.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gaguide.errors import Fault, FaultCollector, UserError

_MAX_END = 20
"""Characters of a prompt's end in a message."""
_MAX_SHOWN = 40
"""Characters of a continuation in a message."""


@dataclass(frozen=True)
class EncodedPair:
    """Tokens of one (prompt, continuation)."""

    input_ids: tuple[int, ...]
    """The model's input; its last len(target_ids) positions predict the targets."""
    target_ids: tuple[int, ...]
    """The scored tokens."""
    truncated: int = 0
    """Tokens removed on the left."""
    dropped: int = 0
    """Demonstrations left out so that the pair fits."""
    is_joined: bool = False
    """Whether the continuation's first characters joined the prompt's last token and are not scored."""
    band: str = ""
    """Kind near_cue: band of the scored tokens, one of `gaguide.guidance.cues.BANDS`."""


class EmptyContinuationError(ValueError):
    """The continuation adds no token to its prompt."""


class LongContinuationError(ValueError):
    """The continuation alone is longer than the model's positions."""


class Encoder:
    """Encodes pairs with one tokenizer for a model of `max_length` positions."""

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.prefix_id: int | None = bos if bos is not None else eos
        self._prefix_text = tokenizer.decode(self.prefix_id) if self.prefix_id is not None else None
        self._encoded_texts: dict[str, list[int]] = {}

    def encode_ahead(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Encode the texts of `pairs` together, on all cores, for the following calls of `encode_pair`.

        Replaces what the last call encoded.
        """
        texts = {
            text for prompt, after in pairs if prompt.rstrip() for text in (prompt.rstrip(), prompt + after)
        }
        plain = [text for text in texts if not self._has_prefix(text)]
        found = (
            self.tokenizer(plain, return_attention_mask=False, verbose=False)["input_ids"] if plain else []
        )
        self._encoded_texts = dict(zip(plain, found, strict=True))

    def encode_pair(self, prompt: str, continuation: str) -> EncodedPair:
        """Tokens of a pair; raises `EmptyContinuationError`, `LongContinuationError`, or `UserError`."""
        stripped = prompt.rstrip()
        prompt_ids, target_ids, is_joined = (
            self._split(stripped, prompt[len(stripped) :] + continuation)
            if stripped
            else self._without_prompt(prompt + continuation)
        )
        if not target_ids:
            raise EmptyContinuationError
        if len(target_ids) > self.max_length:
            raise LongContinuationError
        whole = (*prompt_ids, *target_ids)
        kept = whole[-(self.max_length + 1) :]
        return EncodedPair(kept[:-1], tuple(target_ids), len(whole) - len(kept), is_joined=is_joined)

    def encode_rolling(self, text: str) -> list[EncodedPair]:
        """A document in windows of the model's positions, each token scored once; none for an empty text.

        The first window follows the beginning-of-text token; the others are as long as the model allows, so
        that the last one overlaps the one before. Raises `UserError` where there is no such token.
        """
        if self.prefix_id is None:
            problem = "documents need a tokenizer with a beginning-of-text or end-of-text token"
            raise UserError.of("--model", problem, "set bos_token in tokenizer_config.json")
        ids, longest = self._encode(text), self.max_length
        first = min(longest, len(ids))
        windows = [EncodedPair((self.prefix_id, *ids[: first - 1]), tuple(ids[:first]))] if ids else []
        for start in range(first, len(ids), longest):
            end = min(start + longest, len(ids))
            windows.append(EncodedPair(tuple(ids[end - longest - 1 : end - 1]), tuple(ids[start:end])))
        return windows

    def encode_prompt(self, text: str, new_tokens: int) -> EncodedPair:
        """Tokens of a prompt that leaves room for `new_tokens` generated ones; its target is a
        placeholder."""
        ids = self._encode(text) or ([] if self.prefix_id is None else [self.prefix_id])
        kept = ids[-max(1, self.max_length - new_tokens) :]
        return EncodedPair(tuple(kept), (0,), len(ids) - len(kept))

    def _split(self, prompt: str, continuation: str) -> tuple[list[int], list[int], bool]:
        prompt_ids, whole = self._encode(prompt), self._encode(prompt + continuation)
        start = len(prompt_ids)
        return prompt_ids, whole[start:], whole[:start] != prompt_ids

    def _without_prompt(self, continuation: str) -> tuple[list[int], list[int], bool]:
        if self.prefix_id is None:
            problem = "an empty prompt needs a tokenizer with a beginning-of-text or end-of-text token"
            raise UserError.of("--model", problem, "set bos_token in tokenizer_config.json")
        ids = self.tokenizer.encode(continuation, add_special_tokens=False, verbose=False)
        if ids and ids[0] == self.prefix_id:
            return ids[:1], ids[1:], False
        return [self.prefix_id], ids, False

    def _encode(self, text: str) -> list[int]:
        if text in self._encoded_texts:
            return self._encoded_texts[text]
        # verbose=False: no warning about texts longer than the model, which are truncated here.
        if self._has_prefix(text):
            return self.tokenizer.encode(text, add_special_tokens=False, verbose=False)
        return self.tokenizer.encode(text, verbose=False)

    def _has_prefix(self, text: str) -> bool:
        return self._prefix_text is not None and text.startswith(self._prefix_text)


def encode_segments(
    encoder: Encoder, segments: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], where: str
) -> list[EncodedPair]:
    """A block's segments, which are tokens already; `where` names the block in a fault."""
    longest = max(len(ids) for ids, _ in segments)
    if longest > encoder.max_length:
        problem = f"has {longest + 1} tokens, but the model has {encoder.max_length} positions"
        raise UserError.of(where, problem, "set block_length in the task file")
    return [EncodedPair(ids, targets) for ids, targets in segments]


def encode_pairs(encoder: Encoder, pairs: Sequence[tuple[str, str]], where: str) -> list[EncodedPair]:
    """Tokens of one example's pairs; `where` names the example in faults. Raises `UserError`."""
    encoded = []
    with FaultCollector() as faults:
        for at, (prompt, continuation) in enumerate(pairs):
            try:
                encoded.append(encoder.encode_pair(prompt, continuation))
            except EmptyContinuationError:
                problem, remedy = f"continuation {at} adds no token to its prompt", "give it a visible text"
                if continuation.strip():
                    problem += f": its text joins the prompt's end, {prompt[-_MAX_END:]!r}, in one token"
                    remedy = "begin it with a space, or set `delimiter` in the task file"
                faults.add(Fault(where, problem, remedy, continuation))
            except LongContinuationError:
                problem = f"continuation {at} is longer than the model's {encoder.max_length} positions"
                faults.add(Fault(where, problem, "shorten it", continuation[:_MAX_SHOWN] + "…"))
    return encoded
