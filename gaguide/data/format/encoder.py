"""Fast encoding of documents.

Documents are encoded as plain text: a document that spells out a special token gets that text's ordinary
ids, never the special one. Byte-level BPE by GPT-2's rules is encoded by tiktoken, built from the tokenizer's
own vocabulary and checked against the Hugging Face tokenizer on a sample. Other tokenizers encode themselves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from gaguide.data.format.tokenizer import merge_pair
from gaguide.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# GPT-2's rule for splitting text into words, in tiktoken's spelling: possessive quantifiers make it fast.
_GPT2_WORDS = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
# tiktoken's regex is quadratic in a run of white space, and panics on one of about 100,000 characters.
# Python's \s has four characters more (the separators 1C to 1F), which are not white space to the regex.
_LONG_SPACE = re.compile(r"[^\S\x1c-\x1f]{256,}")
_PROBE = (
    "The cat didn't sit, but it's what we'd've said: they'll see I'm 100% sure… don't YOU'RE?\n\n\n"
    "  indent\n\tdef f(x):\r\n    return x**2 != 3.14159 and not None  \n   \u00a0\u3000wide  spaces \u200b\n"
    "Straße naïve ÅÄÖ Ελλάδα Привет мир שלום مرحبا नमस्ते ไทย 日本語 中文 한국어"
    "🙂👩‍👩‍👧 e\u0301 ½ ² Ⅻ ٣ ''s 's\x00\x7f"
    " <|endoftext|> trailing   "
)


class DocumentEncoder:
    """Encodes documents as ids without special tokens. Can be pickled, so that each worker gets a copy."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, sample: Iterable[str] = (), try_fast: bool = True):
        """Use tiktoken if it gives equal ids on a probe, the vocabulary and the `sample` texts."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._reference_json: str | None = None if backend is None else backend.to_str()
        self._slow_tokenizer = tokenizer if backend is None else None
        self._ranks = _gpt2_ranks(self._reference_json) if try_fast and self._reference_json else None
        self._tiktoken: Any = None
        self._reference: Any = None
        self._with_offsets: dict[bool, Any] = {}
        self._sizes_V: np.ndarray | None = None
        if self._ranks is not None and not self._equal_on([*_probes(tokenizer), *sample]):
            self._ranks = None

    @property
    def fast(self) -> bool:
        """Whether tiktoken encodes."""
        return self._ranks is not None

    def encode(self, text: str) -> np.ndarray:
        """Ids [n] uint32 of `text`, which must be encodable as UTF-8."""
        if self._ranks is None:
            return self.encode_by_reference(text)
        if self._tiktoken is None:
            self._tiktoken = _tiktoken_encoding(self._ranks)
        parts, at = [], 0
        for run in _LONG_SPACE.finditer(text):
            # A run is one word, except its last character, which may belong to the text that follows.
            end = run.end() - (run.end() < len(text))
            parts.append(self._encode_words(text[at : run.start()]))
            parts.append(np.asarray(self._tiktoken._encode_single_piece(text[run.start() : end]), np.uint32))
            at = end
        parts.append(self._encode_words(text[at:]))
        return np.concatenate(parts)

    def _encode_words(self, text: str) -> np.ndarray:
        # No special token is allowed and none raises: text that spells one gets ordinary ids.
        return np.asarray(self._tiktoken.encode_to_numpy(text, disallowed_special=()), np.uint32)

    def encode_by_reference(self, text: str) -> np.ndarray:
        """As `encode`, by the Hugging Face tokenizer."""
        if self._slow_tokenizer is not None:
            ids = self._slow_tokenizer.encode(
                text, add_special_tokens=False, split_special_tokens=True, verbose=False
            )
            return np.array(ids, np.uint32)
        if self._reference is None:
            self._reference = _plain_tokenizer(self._reference_json or "")
        # encode_batch_fast computes no offsets, which take many times the memory of the ids.
        return np.array(self._reference.encode_batch_fast([text], add_special_tokens=False)[0].ids, np.uint32)

    def encode_with_offsets(self, text: str, special: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Ids [n] uint32, and first character and the one after the last of each [n, 2] int64.

        A character whose bytes are in several tokens belongs to each. special: text that spells special
        tokens gets their ids, as chat templates write them; then the Hugging Face tokenizer encodes. Raises a
        `UserError` for a tokenizer in Python, which has no offsets.
        """
        if self._ranks is not None and not special:
            ids = self.encode(text)
            return ids, self._offsets_of_bytes(text, ids)
        if self._reference_json is None:
            problem = "is a slow (Python) tokenizer, which reports no offsets"
            raise UserError.of("--tokenizer", problem, "give one with a tokenizer.json")
        if special not in self._with_offsets:
            # A processor of byte-level BPE would take the white space out of the offsets.
            plain = json.dumps({**json.loads(self._reference_json), "post_processor": None})
            self._with_offsets[special] = _plain_tokenizer(plain)
            self._with_offsets[special].encode_special_tokens = not special
        encoded = self._with_offsets[special].encode(text, add_special_tokens=False)
        return np.array(encoded.ids, np.uint32), np.array(encoded.offsets, np.int64).reshape(-1, 2)

    def _offsets_of_bytes(self, text: str, ids: np.ndarray) -> np.ndarray:
        """The characters of each token, for a tokenizer whose tokens are the bytes of the text."""
        assert self._ranks is not None
        if self._sizes_V is None:
            self._sizes_V = np.zeros(max(self._ranks.values()) + 1, np.int64)
            for token, rank in self._ranks.items():
                self._sizes_V[rank] = len(token)
        ends = np.cumsum(self._sizes_V[ids])
        starts = ends - self._sizes_V[ids]
        raw = np.frombuffer(text.encode("utf-8"), np.uint8)
        if len(raw) == len(text):
            return np.stack([starts, ends], 1)
        character = np.cumsum((raw & 0xC0) != 0x80) - 1
        return np.stack([character[starts], character[ends - 1] + 1], 1)

    def _equal_on(self, texts: Iterable[str]) -> bool:
        return all(np.array_equal(self.encode(text), self.encode_by_reference(text)) for text in texts)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tiktoken": None, "_reference": None, "_with_offsets": {}, "_sizes_V": None}


def _plain_tokenizer(serialized: str) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(serialized)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _tiktoken_encoding(ranks: dict[bytes, int]) -> Any:
    import tiktoken

    # tiktoken's search for special tokens is slow if there are none and fast if there is one.
    special = {"<|no such token|>": max(ranks.values()) + 1}
    return tiktoken.Encoding("gaguide", pat_str=_GPT2_WORDS, mergeable_ranks=ranks, special_tokens=special)


def _gpt2_ranks(serialized: str) -> dict[bytes, int] | None:
    """Token bytes → id for byte-level BPE by GPT-2's rules with ids ascending by merge; None otherwise."""
    parsed = json.loads(serialized)
    model, words = parsed["model"], parsed["pre_tokenizer"] or {}
    special = {token["content"] for token in parsed["added_tokens"] if token["special"]}
    plain = (
        model.get("type") == "BPE"
        and parsed["normalizer"] is None
        and words.get("type") == "ByteLevel"
        and not words.get("add_prefix_space")
        and words.get("use_regex", True)
        and len(special) == len(parsed["added_tokens"])
        and not any(
            model.get(key)
            for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
        )
    )
    if not plain:
        return None
    byte_of = {character: byte for byte, character in enumerate(byte_characters())}
    merged = ["".join(merge_pair(merge)) for merge in model["merges"]]
    vocabulary = model["vocab"]
    ids = [vocabulary.get(token, -1) for token in merged]
    # tiktoken merges in the order of ids, so these must ascend with the merges, after the single bytes.
    singles = [vocabulary.get(character, -1) for character in byte_of]
    if -1 in singles or -1 in ids or any(b <= a for a, b in zip([max(singles), *ids], ids)):
        return None
    tokens = [*byte_of, *merged]
    return {bytes(byte_of[character] for character in token): vocabulary[token] for token in tokens}


def byte_characters() -> list[str]:
    """The printable character that stands for each byte in byte-level BPE, by byte (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    stand_in = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(stand_in)) for byte in range(256)]


def _probes(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The built-in probe, and every piece of the vocabulary next to other pieces."""
    byte_of = {character: byte for byte, character in enumerate(byte_characters())}
    pieces = [
        bytes(byte_of[character] for character in token if character in byte_of)
        for token in sorted(tokenizer.get_vocab())
    ]
    glued = b"".join(pieces).decode("utf-8", errors="ignore")
    spaced = b" ".join(pieces).decode("utf-8", errors="ignore")
    return [_PROBE, glued, spaced]
