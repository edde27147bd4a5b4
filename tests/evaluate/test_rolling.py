"""Rolling windows of documents and the greedy comparison, against the harness and plain decoding."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from gaguide.evaluate.encode.encoder import Encoder
from gaguide.evaluate.schedule.rows import TokenSequence, build_row
from gaguide.evaluate.score.scorer import Scorer
from tests.support.models import random_ids, tiny_model


@pytest.fixture(scope="module")
def tokenizer(gpt2_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(gpt2_folder)


@pytest.mark.parametrize("positions", [4, 7, 64])
@pytest.mark.parametrize("words", [0, 1, 3, 4, 5, 8, 9, 40, 63, 64, 65])
def test_windows_of_a_document_are_the_harness_own(positions: int, words: int, tokenizer: Any) -> None:
    utils = pytest.importorskip("lm_eval.utils", reason="needs lm-evaluation-harness (extra: test)")
    text = " ".join(["not"] * words)
    windows = utils.get_rolling_token_windows(tokenizer.encode(text), tokenizer.bos_token_id, positions, 1)
    wanted = [utils.make_disjoint_window(window) for window in windows]
    found = Encoder(tokenizer, positions).encode_rolling(text)
    assert [list(one.target_ids) for one in found] == [after for _, after in wanted]
    assert [list(one.input_ids) for one in found] == [(before + after)[:-1] for before, after in wanted]


def test_greedy_scores_say_whether_decoding_gives_the_continuation() -> None:
    model = tiny_model("gpt2")
    prompt = random_ids(1, 12)[0].tolist()
    whole = list(prompt)
    with torch.no_grad():
        for _ in range(3):
            whole.append(int(model(torch.tensor([whole])).logits[0, -1].argmax()))
    target = whole[len(prompt) :]
    other = [*target[:2], (target[2] + 1) % 64]
    asked = [
        TokenSequence(tuple([*prompt, *end][:-1]), tuple(end), (0, nth), nth > 1)
        for nth, end in enumerate([target, other, target, other])
    ]
    scores = Scorer(model, torch.device("cpu")).score([build_row(asked)])
    assert (scores[0, 2], scores[0, 3]) == (1.0, 0.0)
    with torch.no_grad():
        logits_TV = model(torch.tensor([[*prompt, *target]])).logits[0].double()
    wanted = sum(
        float(logits_TV[len(prompt) - 1 + at].log_softmax(-1)[token]) for at, token in enumerate(target)
    )
    assert scores[0, 0] == pytest.approx(wanted, abs=1e-4)
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(math.nan)
    scores = Scorer(model, torch.device("cpu")).score([build_row(asked)])
    assert all(math.isnan(value) for value in scores.values())
