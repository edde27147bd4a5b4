"""Distances to the last cue, read off short sequences."""

from __future__ import annotations

import torch

from gaguide.guidance.cues import BANDS, cue_bands, cue_distances


def marks(*positions: int, length: int = 30) -> torch.Tensor:
    marked = torch.zeros(1, length, dtype=torch.bool)
    marked[0, list(positions)] = True
    return marked


def test_distance_counts_from_the_last_cue() -> None:
    assert cue_distances(marks(2, 5, length=9)).tolist() == [[-1, -1, 0, 1, 2, 0, 1, 2, 3]]


def test_cues_of_an_earlier_document_do_not_count() -> None:
    document = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]])
    assert cue_distances(marks(2, 6, length=8), document).tolist() == [[-1, -1, 0, 1, -1, -1, 0, 1]]


def test_bands_end_at_0_5_and_20() -> None:
    names = [BANDS[index] for index in cue_bands(marks(3))[0].tolist()]
    assert names == ["rest"] * 3 + ["on"] + ["1-5"] * 5 + ["6-20"] * 15 + ["rest"] * 6


def test_without_a_cue_everything_is_rest() -> None:
    assert set(cue_bands(marks(length=4)).flatten().tolist()) == {BANDS.index("rest")}
