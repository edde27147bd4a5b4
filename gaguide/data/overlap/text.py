"""Decodes the tokens of shards into text: fast, and picklable for worker processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gaguide.data.format.encoder import DocumentEncoder
from gaguide.data.format.tokenizer import tokenizer_fingerprint
from gaguide.data.overlap.index import words_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SAMPLE = 200


class TokenText:
    """Decodes documents, by the bytes of each token if that gives the words of a sample. Can be pickled.

    Otherwise the tokenizer itself decodes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, sample: Sequence[str]) -> None:
        from gaguide.data.format.token_text import token_bytes

        self.fingerprint = tokenizer_fingerprint(tokenizer)
        self._pieces: list[bytes] | None = token_bytes(tokenizer)
        self._tokenizer: PreTrainedTokenizerBase | None = None
        encoder = DocumentEncoder(tokenizer, try_fast=False)
        ids = [encoder.encode(text) for text in sample[:_SAMPLE]]
        decoded = [words_of(str(tokenizer.decode(one.tolist(), skip_special_tokens=True))) for one in ids]
        if decoded != [words_of(self.of(one)) for one in ids]:
            self._pieces, self._tokenizer = None, tokenizer

    def of(self, ids: np.ndarray) -> str:
        """The text of a document's ids [n], without special tokens; invalid bytes are replaced."""
        if self._pieces is None:
            assert self._tokenizer is not None
            return str(self._tokenizer.decode(ids.tolist(), skip_special_tokens=True))
        return b"".join(map(self._pieces.__getitem__, ids.tolist())).decode("utf-8", errors="replace")
