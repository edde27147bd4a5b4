"""Rows contain every shared prefix once, and the mask lets each sequence attend to exactly its own tokens."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from gaguide.evaluate.schedule.rows import TokenSequence, added_tokens, build_row, shared_length
from gaguide.evaluate.score.logits import model_inputs

# Few distinct tokens, so that prefixes are often shared.
_IDS = st.lists(st.integers(0, 2), min_size=1, max_size=8).map(tuple)


def _sequences(id_lists: list[tuple[int, ...]]) -> list[TokenSequence]:
    return [TokenSequence(ids, ids[-min(2, len(ids)) :], (at, 0)) for at, ids in enumerate(id_lists)]


@given(st.lists(_IDS, min_size=1, max_size=8))
def test_every_sequence_is_in_the_row_and_read_at_its_end(id_lists: list[tuple[int, ...]]) -> None:
    row = build_row(_sequences(id_lists))
    assert {read.key for read in row.readouts} == {(at, 0) for at in range(len(id_lists))}
    for read in row.readouts:
        ids = id_lists[read.key[0]]
        assert row.sequence(read) == ids
        assert [row.depths[at] for at in read.positions] == list(range(len(ids)))[-len(read.target_ids) :]


@given(st.lists(_IDS, min_size=1, max_size=8))
def test_a_row_has_one_token_per_distinct_prefix(id_lists: list[tuple[int, ...]]) -> None:
    prefixes = {ids[: n + 1] for ids in id_lists for n in range(len(ids))}
    sequences = sorted(_sequences(id_lists))
    assert len(build_row(sequences)) == len(prefixes) == added_tokens((), sequences)


@given(st.lists(st.lists(_IDS, min_size=1, max_size=5), min_size=1, max_size=3))
def test_the_mask_shows_a_token_only_its_own_prefix(row_ids: list[list[tuple[int, ...]]]) -> None:
    rows = [build_row(_sequences(id_lists)) for id_lists in row_ids]
    made = model_inputs(rows, torch.device("cpu"))
    if "attention_mask" not in made:
        assert not any(row.branches for row in rows)
        return
    for at, row in enumerate(rows):
        for read in row.readouts:
            seen = (made["attention_mask"][at, 0, read.positions[-1]] == 0).nonzero().flatten()
            assert made["input_ids"][at, seen].tolist() == list(row.sequence(read))
            assert made["position_ids"][at, seen].tolist() == list(range(len(seen)))
    assert (made["attention_mask"] == 0).any(dim=-1).all(), "a row of the mask without any key gives NaN"


@given(_IDS, _IDS)
def test_shared_length_is_that_of_the_common_prefix(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    length = shared_length(one, other)
    assert one[:length] == other[:length]
    assert length == min(len(one), len(other)) or one[length] != other[length]
