"""Distance of a text's tokens to its cues, the tokens that a pattern marks: on one, or how far after.

Shapes: B sequences, T positions, K bands, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from gaguide.guidance.lexicon import Lexicon, Mode
from gaguide.guidance.patterns import Columns, Pattern

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BANDS = ("on", "1-5", "6-20", "rest")
"""Bands of a token's distance to the last cue: the cue itself, 1 to 5 tokens after it, 6 to 20, and tokens
further away or before the first cue."""
NEAR = ("on", "1-5", "6-20")
"""Bands near a cue."""
_LAST = (0, 5, 20)  # largest distance of the first three bands


def document_index(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """The document of each token [B, T], where positions restart with each; None without positions."""
    positions_BT = inputs.get("position_ids")
    return None if positions_BT is None else (positions_BT == 0).cumsum(-1)


def cue_distances(marked_BT: torch.Tensor, document_BT: torch.Tensor | None = None) -> torch.Tensor:
    """Tokens since the last cue [B, T], int64: 0 on a cue, -1 where none came before.

    marked_BT: bool, True on cues. document_BT: the index of each token's document, where a cue of an earlier
    document does not count; None counts every earlier cue of the sequence.
    """
    T = marked_BT.shape[1]
    at_T = torch.arange(T, device=marked_BT.device)
    last_BT = torch.where(marked_BT, at_T, -1).cummax(-1).values
    found_BT = last_BT >= 0
    if document_BT is not None:
        found_BT &= document_BT.gather(1, last_BT.clamp(min=0)) == document_BT
    return torch.where(found_BT, at_T - last_BT, -1)


def cue_bands(marked_BT: torch.Tensor, document_BT: torch.Tensor | None = None) -> torch.Tensor:
    """The index in `BANDS` of each token [B, T], int64; arguments as in `cue_distances`.

    A loss belongs to the band of the token that is predicted: "on" is the loss of predicting the cue.
    """
    distance_BT = cue_distances(marked_BT, document_BT)
    bounds = torch.tensor(_LAST, device=marked_BT.device)
    return torch.where(distance_BT < 0, len(_LAST), torch.bucketize(distance_BT, bounds))


@dataclass(frozen=True)
class Cues:
    """The cues of one lexicon for one tokenizer."""

    lexicon: str
    """Name of the lexicon."""
    mode: Mode
    """Whether its pieces or whole words are cues."""
    content: str
    """Hash of the mode and of the lexicon's pieces or words."""
    pattern: Pattern
    """Marks them."""

    def marked(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """True on cues, bool [B, T]."""
        target = self.pattern.target(ids_BT)
        assert isinstance(target, Columns)
        return target.marked_BT

    def bands(self, ids_T: Sequence[int], document_T: Sequence[int]) -> list[str]:
        """The band of each of T tokens; `document_T` numbers their documents."""
        ids_BT, document_BT = torch.tensor([ids_T]), torch.tensor([document_T])
        return [BANDS[index] for index in cue_bands(self.marked(ids_BT), document_BT)[0].tolist()]

    def loss_sums(
        self,
        logits_BTV: torch.Tensor,
        ids_BT: torch.Tensor,
        document_BT: torch.Tensor | None,
        counts_BT: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Summed loss and number of the predicted tokens of each band, float64 [K, 2].

        The first token of a sequence is not predicted, and tokens with `counts_BT` False are left out.
        Logits are made fp32 one sequence at a time.
        """
        counts_BT = torch.ones_like(ids_BT).bool() if counts_BT is None else counts_BT
        bands_BT = cue_bands(self.marked(ids_BT), document_BT)
        sums_K2 = torch.zeros(len(BANDS), 2, dtype=torch.float64, device=ids_BT.device)
        sequences = zip(logits_BTV, ids_BT, bands_BT, counts_BT.double(), strict=True)
        for logits_TV, ids_T, bands_T, counts_T in sequences:
            losses = torch.nn.functional.cross_entropy(logits_TV[:-1].float(), ids_T[1:], reduction="none")
            sums_K2[:, 0].index_add_(0, bands_T[1:], losses.double() * counts_T[1:])
            sums_K2[:, 1].index_add_(0, bands_T[1:], counts_T[1:])
        return sums_K2

    def record(self, sums: Sequence[Sequence[float]]) -> Mapping[str, Any]:
        """The result of `loss_sums`, summed over batches and ranks, as plain JSON values."""
        return {
            "lexicon": self.lexicon,
            "mode": self.mode,
            "content": self.content,
            "bands": {
                band: {"loss": loss / count if count else None, "tokens": round(count)}
                for band, (loss, count) in zip(BANDS, sums, strict=True)
            },
        }


def make_cues(lexicon: Lexicon, mode: Mode, tokenizer: PreTrainedTokenizerBase) -> Cues:
    """The cues of a lexicon; raises `UserError` where the tokenizer has no token of it."""
    return Cues(lexicon.name, mode, lexicon.content(mode), lexicon.pattern(tokenizer, mode))
