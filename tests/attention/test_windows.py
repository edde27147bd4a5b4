"""Long texts in windows: every token once, the same numbers as without windows, and the model's limit."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gaguide.attention import collect, make_panels, split, text_panels, window_panels
from gaguide.errors import UserError
from gaguide.guidance import FixedOffset, TokenSet
from tests.support.models import random_ids, tiny_model


@given(st.integers(1, 5000), st.integers(1, 80))
def test_windows_cover_every_token_once(tokens: int, size: int) -> None:
    windows = split(tokens, size)
    assert windows[0][0] == 0 and windows[-1][1] == tokens
    assert all(before[1] == after[0] for before, after in itertools.pairwise(windows))
    lengths = [stop - start for start, stop in windows]
    assert max(lengths) <= size and max(lengths) - min(lengths) <= 1


def test_a_window_has_the_numbers_of_the_whole_text() -> None:
    model, ids_T = tiny_model("gpt2"), random_ids(1, 60)[0]
    ids_T[[5, 30]] = 40
    words = {(1, 2): TokenSet("words", frozenset({40}))}
    labels = [str(int(token)) for token in ids_T]
    whole = make_panels("m", collect(model, ids_T[None], [1], [2]), ids_T, labels, words)[0]
    part = window_panels("m", model, ids_T, labels, (20, 40), [1], [2], words)[0]
    torch.testing.assert_close(part.weights_QK[:, 1:], whole.weights_QK[20:40, 20:40])
    torch.testing.assert_close(part.weights_QK[:, 0], whole.weights_QK[20:40, :20].sum(-1))
    assert part.guided_keys == {11} and part.key_labels[1:] == tuple(labels[20:40])
    assert part.mass == pytest.approx(
        float((whole.weights_QK * whole.guided_QK).sum(-1)[20:40].mean()), abs=1e-5
    )


def test_a_text_longer_than_the_models_positions_is_read_from_as_far_back_as_possible() -> None:
    model, ids_T = tiny_model("gpt2"), random_ids(1, 200)[0]  # 96 positions
    labels = [str(at) for at in range(200)]
    panels = [window_panels("m", model, ids_T, labels, window, [0], [1])[0] for window in split(200, 40)]
    assert [label for panel in panels for label in panel.query_labels] == labels
    alone = collect(model, ids_T[None, 104:200], [0], [1], queries=(56, 96)).head(0, 1)
    torch.testing.assert_close(panels[-1].weights_QK[:, 1:], alone[:, 56:])
    for panel in panels:
        torch.testing.assert_close(panel.weights_QK.sum(-1), torch.ones(len(panel.query_labels)))


def test_a_window_outside_of_the_text_is_refused() -> None:
    for window in ((0, 61), (-1, 4), (7, 7)):
        with pytest.raises(UserError, match="the text has 60 tokens"):
            window_panels("m", tiny_model("gpt2"), random_ids(1, 60)[0], ["x"] * 60, window)


def test_windows_share_the_forward_pass_of_a_text_within_the_models_positions() -> None:
    """As many tokens are read as the text has, and the numbers are those of one pass for each window."""
    model, ids_T = tiny_model("gpt2"), random_ids(1, 90)[0]
    ids_T[[5, 30]] = 40
    words = {(1, 2): TokenSet("words", frozenset({40})), (0, 1): FixedOffset(3)}
    labels, windows = [str(at) for at in range(90)], split(90, 16)
    read: list[int] = []
    model.register_forward_pre_hook(
        lambda _, args, given: read.append(given["input_ids"].numel()), with_kwargs=True
    )
    together = text_panels("m", model, ids_T, labels, windows, None, None, words)
    assert read == [90]
    for window, panels in zip(windows, together, strict=True):
        alone = window_panels("m", model, ids_T, labels, window, None, None, words)
        for ours, theirs in zip(panels, alone, strict=True):
            torch.testing.assert_close(ours.weights_QK, theirs.weights_QK)
            assert torch.equal(ours.guided_QK, theirs.guided_QK) and ours.guided_keys == theirs.guided_keys
            assert ours.mass == pytest.approx(theirs.mass) and ours.key_labels == theirs.key_labels
