"""From (prompt, continuation) to the tokens that a model sees and those that are scored.

The rules are those of lm-evaluation-harness 0.4.13, so that scores can be compared: whitespace at the end
of the prompt moves to the continuation; prompt and continuation are encoded together and split at the
prompt's own length; an empty prompt becomes the beginning-of-text token; what is too long loses tokens on
the left.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gaguide.errors import Fault, UserError

_UNSET_LENGTH = 1_000_000_000_000_000_019_884_624_838_656
"""`model_max_length` of a tokenizer that has none."""
_DEFAULT_LENGTH = 2048


@dataclass(frozen=True)
class Encoded:
    """Tokens of one (prompt, continuation). The last len(target_ids) input positions predict the targets."""

    input_ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    truncated: int = 0


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
        self._known: dict[str, list[int]] = {}

    def ahead(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Encode the texts of `pairs` on all cores, in place of those of the last call; `pair` finds them."""
        texts = {
            text for prompt, after in pairs if prompt.rstrip() for text in (prompt.rstrip(), prompt + after)
        }
        plain = [text for text in texts if not self._begins_itself(text)]
        found = (
            self.tokenizer(plain, return_attention_mask=False, verbose=False)["input_ids"] if plain else []
        )
        self._known = dict(zip(plain, found, strict=True))

    def pair(self, prompt: str, continuation: str) -> Encoded:
        """Tokens of a pair; raises `EmptyContinuationError`, `LongContinuationError`, or `UserError`."""
        stripped = prompt.rstrip()
        prompt_ids, target_ids = (
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
        return Encoded(kept[:-1], tuple(target_ids), len(whole) - len(kept))

    def prompt(self, text: str, new_tokens: int) -> Encoded:
        """Tokens of a prompt that `new_tokens` tokens are to follow; a target stands for each of them."""
        ids = self._encode(text) or ([] if self.prefix_id is None else [self.prefix_id])
        kept = ids[-max(1, self.max_length - new_tokens) :]
        return Encoded(tuple(kept), (0,), len(ids) - len(kept))

    def _split(self, prompt: str, continuation: str) -> tuple[list[int], list[int]]:
        prompt_ids = self._encode(prompt)
        return prompt_ids, self._encode(prompt + continuation)[len(prompt_ids) :]

    def _without_prompt(self, continuation: str) -> tuple[list[int], list[int]]:
        if self.prefix_id is None:
            problem = "has neither a beginning-of-text nor an end-of-text token, which an empty prompt needs"
            raise UserError(
                Fault("--model", f"the tokenizer {problem}", "set bos_token in tokenizer_config.json")
            )
        ids = self.tokenizer.encode(continuation, add_special_tokens=False, verbose=False)
        if ids and ids[0] == self.prefix_id:
            return ids[:1], ids[1:]
        return [self.prefix_id], ids

    def _encode(self, text: str) -> list[int]:
        if text in self._known:
            return self._known[text]
        # verbose: a warning of texts longer than the model, which are cut here.
        if self._begins_itself(text):
            return self.tokenizer.encode(text, add_special_tokens=False, verbose=False)
        return self.tokenizer.encode(text, verbose=False)

    def _begins_itself(self, text: str) -> bool:
        return self._prefix_text is not None and text.startswith(self._prefix_text)


def longest_input(config: Any, tokenizer: Any) -> int:
    """Positions of a model: its configuration's, else its tokenizer's, else 2048."""
    config = getattr(config, "text_config", None) or config
    for name in ("n_positions", "max_position_embeddings", "n_ctx"):
        length = getattr(config, name, None)
        if length:
            return int(length)
    length = getattr(tokenizer, "model_max_length", None)
    return int(length) if length and length != _UNSET_LENGTH else _DEFAULT_LENGTH


def encode_pieces(
    encoder: Encoder, pieces: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], where: str
) -> list[Encoded]:
    """A block's pieces, which are tokens already; `where` names the block in the fault of one too long."""
    longest = max(len(ids) for ids, _ in pieces)
    if longest > encoder.max_length:
        problem = f"has {longest + 1} tokens, the model takes {encoder.max_length}"
        raise UserError(Fault(where, problem, "set block_length in the task file"))
    return [Encoded(ids, targets) for ids, targets in pieces]


def encode_all(encoder: Encoder, pairs: Sequence[tuple[str, str]], where: str) -> list[Encoded]:
    """Tokens of one example's pairs; `where` names the example in faults."""
    encoded, faults = [], []
    for at, (prompt, continuation) in enumerate(pairs):
        try:
            encoded.append(encoder.pair(prompt, continuation))
        except EmptyContinuationError:
            problem = f"continuation {at} adds no token to its prompt"
            faults.append(Fault(where, problem, "give it a visible text", continuation))
        except LongContinuationError:
            problem = f"continuation {at} is longer than the model's {encoder.max_length} positions"
            faults.append(Fault(where, problem, "shorten it", continuation[:40] + "…"))
    if faults:
        raise UserError(faults)
    return encoded
