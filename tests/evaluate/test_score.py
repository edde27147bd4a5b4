"""Scores equal a plain forward pass over each sequence alone, for several architectures."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, Gemma2Config, MistralConfig

from gaguide.evaluate.schedule.batches import Batch, make_batches
from gaguide.evaluate.schedule.cost import Budget, CostModel
from gaguide.evaluate.schedule.rows import TokenSequence, build_row
from gaguide.evaluate.score.logits import Scores, logsumexp
from gaguide.evaluate.score.scorer import Scorer
from tests.support.models import sharpen, tiny_model
from tests.support.prefixes import scores_of
from tests.support.ranks import rank_environment

_CPU = torch.device("cpu")
_COST = CostModel(layers=3, width=32, vocabulary=64)
_SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def _examples(seed: int = 0) -> list[list[TokenSequence]]:
    """Prompts that share demonstrations, with three continuations of one to four tokens each."""
    rng = torch.Generator().manual_seed(seed)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(2, 64, (count,), generator=rng).tolist())

    shots, examples = ids(20), []
    for at in range(8):
        prompt = (shots if at % 2 else ()) + ids(3 + at)
        pairs = []
        for nth in range(3):
            target = ids(1 + (at + nth) % 4)
            pairs.append(TokenSequence((*prompt, *target)[:-1], target, (at, nth)))
        examples.append(pairs)
    return examples


def _alone(model: torch.nn.Module, examples: list[list[TokenSequence]]) -> Scores:
    scores = {}
    for sequence in (sequence for pairs in examples for sequence in pairs):
        with torch.inference_mode():
            logits_TV = model(torch.tensor([sequence.input_ids])).logits[0].double()
        targets = torch.tensor(sequence.target_ids)
        logs_NV = logits_TV[-len(targets) :].log_softmax(-1)
        scores[sequence.key] = float(logs_NV.gather(1, targets[:, None]).sum())
    return scores


def _score(scorer: Scorer, examples: list[list[TokenSequence]], batch_tokens: int = 128) -> Scores:
    batches = make_batches(examples, Budget(batch_tokens), _COST)
    scorer.detect_sharing(batches)
    return scores_of(scorer, batches)


@pytest.mark.parametrize("kind", ["gpt2", "gpt-neox", "opt", "llama-grouped-query", "qwen2"])
def test_shared_prefixes_give_the_scores_of_each_sequence_alone(kind: str) -> None:
    model, examples = tiny_model(kind, attn_implementation="sdpa"), _examples()
    scorer = Scorer(model, _CPU)
    scores = _score(scorer, examples)
    assert scorer.sharing
    assert scores == pytest.approx(_alone(model, examples), abs=1e-4)


@pytest.mark.parametrize("batch_tokens", [1, 50, 5000])
def test_scores_do_not_depend_on_the_batch_size(batch_tokens: int) -> None:
    model, examples = tiny_model("gpt2", attn_implementation="sdpa"), _examples()
    assert _score(Scorer(model, _CPU), examples, batch_tokens) == pytest.approx(
        _score(Scorer(model, _CPU), examples), abs=1e-5
    )


@pytest.mark.parametrize(
    "config",
    [
        BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4),  # positions by ALiBi
        Gemma2Config(
            **_SMALL, intermediate_size=64, num_key_value_heads=2, head_dim=8, final_logit_softcapping=2.0
        ),
        MistralConfig(**_SMALL, intermediate_size=64, num_key_value_heads=2, sliding_window=8),
    ],
    ids=["alibi", "softcapped logits", "sliding window"],
)
def test_models_that_cannot_share_prefixes_are_detected_and_scored_correctly(config: object) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    sharpen(model, 0.25)
    scorer, examples = Scorer(model, _CPU), _examples()
    scores = _score(scorer, examples)
    assert not scorer.sharing
    assert scores == pytest.approx(_alone(model, examples), abs=1e-4)


def test_rows_that_exceed_memory_are_halved_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    model, examples, said = tiny_model("gpt2", attn_implementation="sdpa"), _examples(), []
    rows = [build_row(pairs) for pairs in examples]
    wanted = Scorer(model, _CPU).score(rows)
    scorer = Scorer(model, _CPU, say=said.append)
    whole = scorer._score_together

    def small_memory(rows: list, prefix: tuple[int, ...]) -> Scores:
        if len(rows) > 2:
            raise torch.OutOfMemoryError
        return whole(rows, prefix)

    monkeypatch.setattr(scorer, "_score_together", small_memory)
    assert scorer.score(rows) == pytest.approx(wanted, abs=1e-5)
    assert len(said) == 3 and "8 rows" in said[0]


_LITTLE_MEMORY = """
import json, re, resource, sys
from pathlib import Path
import torch
from gaguide.evaluate.schedule.rows import TokenSequence, build_row
from gaguide.evaluate.score.scorer import Scorer
from transformers import GPT2Config, GPT2LMHeadModel

torch.set_num_threads(1)
torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, n_positions=64)).eval()
ids = [torch.randint(50257, (60,)).tolist() for _ in range(16)]
rows = [build_row([TokenSequence(tuple(row), tuple(row[1:]) + (7,), (at, 0))]) for at, row in enumerate(ids)]
wanted = Scorer(model, torch.device("cpu")).score(rows[-1:])
said = []
scorer = Scorer(model, torch.device("cpu"), say=said.append)
held = int(re.search(r"VmSize:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (held + (160 << 20), resource.RLIM_INFINITY))
scores = scorer.score(rows)
print(json.dumps([len(scores), abs(scores[15, 0] - wanted[15, 0]), said]))
"""


@pytest.mark.processes
def test_rows_that_exceed_cpu_memory_are_halved_too() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _LITTLE_MEMORY], env=rank_environment(), capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    count, difference, said = json.loads(ended.stdout.splitlines()[-1])
    assert count == 16 and difference < 1e-4
    assert "out of memory with 16 rows of 60 tokens: halved" in said


def test_small_batches_give_equal_bits_with_one_and_two_threads() -> None:
    model = tiny_model("gpt2", attn_implementation="sdpa")
    threads = torch.get_num_threads()
    for length in range(2, 16):
        row = build_row([TokenSequence(tuple(range(2, 2 + length)), (5, 6), (0, 0))])
        found = []
        try:
            for count in (1, 2):
                torch.set_num_threads(count)
                found.append(Scorer(model, _CPU).score([row]))
        finally:
            torch.set_num_threads(threads)
        assert found[0] == found[1], f"{length} tokens"


_GPT2_WIDTH = """
import torch
from gaguide.evaluate.schedule.rows import TokenSequence, build_row
from gaguide.evaluate.score.scorer import Scorer, make_sums_reproducible
from transformers import GPT2Config, GPT2LMHeadModel

make_sums_reproducible()
torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_layer=1, n_embd=768, n_head=12)).eval()
ids = torch.randint(64, (300,)).tolist()
rows = [build_row([TokenSequence(tuple(ids[:length]), (5, 6, 7), (0, 0))]) for length in (40, 120, 300)]
for row in rows:
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(Scorer(model, torch.device("cpu")).score([row]))
    assert found[0] == found[1], (len(row), found)
"""


@pytest.mark.processes
def test_a_model_of_gpt2s_width_gives_equal_bits_with_one_and_two_threads() -> None:
    """In a separate process, since MKL reads the setting before its first product."""
    environment = rank_environment()
    environment.pop("MKL_CBWR", None)  # another test's evaluation may have set it for this process
    ended = subprocess.run(
        [sys.executable, "-c", _GPT2_WIDTH], env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr


def test_the_check_computes_few_sequences_of_a_row_that_holds_many() -> None:
    model, prompt = tiny_model("gpt2", attn_implementation="sdpa"), tuple(range(2, 62))
    row = build_row([TokenSequence((*prompt, at), (at,), (at, 0)) for at in range(2, 60)])
    scorer, tokens = Scorer(model, _CPU), []
    model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: tokens.append((args or tuple(kwargs.values()))[0].numel()),
        with_kwargs=True,
    )
    assert scorer.detect_sharing([Batch((row,), 0.0)]) < 1e-4
    assert 0 < sum(tokens) < 4 * len(prompt)


def test_the_check_takes_sequences_that_branch_though_most_of_the_row_are_duplicates() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4))
    sharpen(model, 0.25)
    prompt = tuple(range(2, 22))
    ids = [*[prompt] * 5, *[(*prompt, *(at for _ in range(6))) for at in (30, 31)]]
    row = build_row([TokenSequence(one, one[-2:], (at, 0)) for at, one in enumerate(ids)])
    scorer = Scorer(model.eval(), _CPU)
    assert scorer.detect_sharing([Batch((row,), 0.0)]) > 1e-3
    assert not scorer.sharing


def test_log_sums_are_torchs_own_also_of_infinite_logits() -> None:
    logits_NV = 30 * torch.randn(40, 300)
    logits_NV[0, 3], logits_NV[1, 4], logits_NV[2, 5] = math.inf, -math.inf, math.nan
    logits_NV[3] = -math.inf
    wanted_N = logits_NV.logsumexp(-1)
    torch.testing.assert_close(logsumexp(logits_NV.clone()), wanted_N, equal_nan=True)


def test_log_sums_have_equal_bits_with_one_and_two_threads() -> None:
    """Also those of the last positions: torch splits the sum of a single row among its threads."""
    threads, found = torch.get_num_threads(), []
    logits = torch.randn(8, 33, 50257, generator=torch.Generator().manual_seed(0))
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(torch.stack([logsumexp(logits_NV.clone()) for logits_NV in logits]))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)
