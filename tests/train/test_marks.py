"""Training on data that mark their tokens: two ranks have the losses and gradients of a dense reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gaguide.guidance as guidance_package
from gaguide.config import EMBEDDED, load_config
from gaguide.data import BuildRequest, build_shards, load_tokenizer, rank_micro_batches
from gaguide.data.build.python_reference import embedded_documents
from gaguide.distributed import World
from gaguide.errors import UserError
from gaguide.log import read_metrics
from gaguide.model import build_model
from gaguide.train.job import Job
from gaguide.train.preflight import prepare
from tests.guidance.dense import dense_loss
from tests.support.ranks import DS_CONFIGS, run_ranks

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
COMMON = {
    "data.block_length": "64", "train.global_batch": "4", "train.micro_batch": "1", "train.steps": "2",
    "train.log_every": "1", "train.warmup_steps": "0", "validation.blocks": "5", "model.dropout": "0",
    "train.gradient_clipping": "0", "guidance.weight": "3",
}  # fmt: skip
PLANS = {
    "spans": [{"pattern": "spans:scope", "heads": [0]}, {"pattern": "negation@scope", "heads": [1]}],
    "chat": [{"pattern": "negation@prompt", "heads": [0, 2], "layers": [1]}],
    "masked": [{"pattern": "spans:masked", "heads": [1], "layers": [0]}],
}


@pytest.fixture(scope="module")
def settings(embedded_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Settings of one run on each kind of data."""
    from gaguide.data.overlap.decontaminate import Decontamination
    from gaguide.data.overlap.index import EvaluationText, WordIndex

    folder = tmp_path_factory.mktemp("marks")
    texts = [text[:400] for text in embedded_documents()[:120]]
    rows = []
    for at, text in enumerate(texts):
        scope = [[m, m + 20] for m in range(len(text) - 20) if text[m : m + 4] == " not"]
        # Answers of very different lengths: the mean over blocks is not the mean over tokens.
        messages = [
            {"role": "user", "content": f"It is not {text[:200]}"},
            {"role": "assistant", "content": text[200 : 210 + 180 * (at % 3 == 0)] or "nothing"},
        ]
        rows.append({"text": text, "scope": scope, "messages": messages})
    source = folder / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    planted = [
        EvaluationText("t", str(at), (" ".join(text.split()[5:25]),)) for at, text in enumerate(texts[::2])
    ]
    kinds: dict[str, dict[str, Any]] = {
        "spans": {"spans": ("scope",)},
        "chat": {"chat": "messages", "template": TEMPLATE},
        "masked": {"decontamination": Decontamination(WordIndex(planted), "mask")},
    }
    runs = {}
    for name, options in kinds.items():
        tokenizer = str(embedded_shards / "tokenizer")
        build_shards(
            BuildRequest((str(source),), folder / name, tokenizer, validation_fraction=0.2, **options)
        )
        runs[name] = COMMON | {
            "stage": "zero2", "output": str(folder / f"run-{name}"), "data.shards": str(folder / name),
            "guidance.plan": json.dumps(PLANS[name]), "data.isolate_documents": str(name == "masked").lower(),
        }  # fmt: skip
    runs["chat-whole"] = runs["chat"] | {
        "train.micro_batch": "2",
        "output": str(folder / "whole"),
        "stage": "zero1",
    }
    return runs


@pytest.fixture(scope="module")
def outputs(settings: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    path = tmp_path_factory.mktemp("runs") / "runs.json"
    path.write_text(json.dumps(list(settings.values())), encoding="utf-8")
    done = run_ranks(Path(__file__).parent / "marks_script.py", [str(path)], ranks=2)
    assert done.returncode == 0, done.stdout
    return {name: Path(run["output"]) for name, run in settings.items()}


def job_of(run: dict[str, Any], output: Path) -> Job:
    own = {name: value for name, value in run.items() if name != "stage"} | {"output": str(output)}
    return prepare(load_config(EMBEDDED, own), DS_CONFIGS / "zero2.json", World.from_environment())


def dense(job: Job, blocks: Any, ids_N: np.ndarray) -> dict[str, float]:
    """Losses and norm of the gradient, from whole attention maps in float64."""
    model = build_model(job.model, job.run.seed).double()
    model.set_attn_implementation("eager")
    tokens_BT, marks_BT = torch.from_numpy(blocks.read(ids_N)), blocks.read_marks(ids_N)
    marked = {name: torch.from_numpy(marks_BT >> bit & 1).bool() for bit, name in enumerate(blocks.marks)}
    inputs: dict[str, Any] = {"input_ids": tokens_BT}
    T = tokens_BT.shape[1]
    visible_BTT = torch.ones(len(ids_N), T, T).tril().bool()
    if job.run.data.isolate_documents:
        document_BT = torch.from_numpy(blocks.document_ids(ids_N))
        visible_BTT &= document_BT[:, :, None] == document_BT[:, None]
        inputs["position_ids"] = torch.from_numpy(blocks.positions(ids_N))
        nothing_BTT = torch.zeros(visible_BTT.shape, dtype=torch.float64)
        inputs["attention_mask"] = nothing_BTT.masked_fill(~visible_BTT, -torch.inf)[:, None]
    out = model(**inputs, output_attentions=True, use_cache=False)
    nll = -out.logits.log_softmax(-1)[:, :-1].gather(-1, tokens_BT[:, 1:, None])[..., 0]
    uncounted_BT = sum(
        (marked[name] for name in ("prompt", "masked") if name in marked), torch.zeros(1, T).bool()
    )
    counts_BT = ~uncounted_BT[:, 1:].expand(nll.shape)
    lm_loss = nll[counts_BT].mean()
    guidance = torch.zeros((), dtype=torch.float64)
    shape = job.model.config.get_text_config()
    assert job.plan is not None
    for (layer, head), guided in job.plan.resolve(shape.num_hidden_layers, shape.num_attention_heads).items():
        with guidance_package.marked(marked):
            target = guided.pattern.target(tokens_BT)
        h_BTT = out.attentions[layer][:, head]
        guidance = guidance + dense_loss(
            h_BTT, target, torch.ones_like(tokens_BT).bool(), visible_BTT, "mean", "indicator"
        )
    guidance = 3 * guidance
    (lm_loss + guidance).backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    by_block = nll.detach().masked_fill(~counts_BT, 0).sum(1) / counts_BT.sum(1).clamp(min=1)
    return {
        "lm_loss": lm_loss.item(), "guidance_loss": guidance.item(), "grad_norm": norm.item(),
        "mean of means": by_block.mean().item(), "counted": counts_BT.sum().item(),
    }  # fmt: skip


@pytest.mark.processes
@pytest.mark.parametrize("name", ["spans", "chat", "masked", "chat-whole"])
def test_two_ranks_have_the_losses_of_a_dense_reference(
    name: str, settings: dict[str, dict[str, Any]], outputs: dict[str, Path], tmp_path: Path
) -> None:
    job = job_of(settings[name], tmp_path)
    [ids_N] = rank_micro_batches(job.corpus.order, 0, 4, 4, 0, 1)
    expected = dense(job, job.corpus.blocks, ids_N)
    first = read_metrics(outputs[name] / "metrics.jsonl")[0]
    assert expected["guidance_loss"] > 0.01
    for number in ("lm_loss", "guidance_loss", "grad_norm"):
        assert first[number] == pytest.approx(expected[number], rel=2e-5), number
    if name != "spans":
        assert expected["counted"] < 0.9 * 4 * 63
        assert abs(expected["mean of means"] - expected["lm_loss"]) > 1e-3, "the averages differ"
    held_out, count = job.corpus.held_out, 5
    chosen = np.arange(count) * len(held_out) // count
    expected = dense(job, held_out, chosen)
    untrained = read_metrics(outputs[name] / "validation.jsonl")[0]
    assert untrained["step"] == 0
    assert untrained["lm_loss"] == pytest.approx(expected["lm_loss"], rel=2e-5)
    heads = [head["attention"] for head in untrained["per_head"]]
    assert any(heads) and all(head is None or 0 < head < 1 for head in heads)


def test_marks_that_the_data_lack_are_refused(
    settings: dict[str, dict[str, Any]], embedded_shards: Path, tmp_path: Path
) -> None:
    plan = [{"pattern": "spans:cue", "heads": [0]}, {"pattern": "negation@scope", "heads": [1]}]
    run = settings["spans"] | {"guidance.plan": json.dumps(plan)}
    with pytest.raises(UserError) as caught:
        job_of(run, tmp_path)
    assert [(fault.field, fault.value) for fault in caught.value.faults] == [("guidance.plan", "cue")]
    with pytest.raises(UserError, match="build shards with --spans or --chat"):
        job_of(run | {"data.shards": str(embedded_shards)}, tmp_path)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("previous-token@scope", "one target for each query"),
        ("@x", "does not name"),
        ("spans:", "does not name"),
    ],
)
def test_patterns_that_cannot_be_restricted(name: str, problem: str, embedded_shards: Path) -> None:
    from gaguide.guidance import make_pattern

    with pytest.raises(UserError, match=problem):
        make_pattern(name, load_tokenizer(embedded_shards / "tokenizer"))


def test_a_plan_needs_the_marks_within_its_marks(embedded_shards: Path) -> None:
    from gaguide.guidance import Assignment, GuidancePlan, MarkedTokens, make_pattern, marked

    tokenizer = load_tokenizer(embedded_shards / "tokenizer")
    both = make_pattern("negation@scope@prompt", tokenizer)
    plan = GuidancePlan((Assignment(both, (0,)), Assignment(MarkedTokens("scope"), (1,))))
    assert plan.marks == ("prompt", "scope")
    ids = torch.arange(12)[None]
    moving = MarkedTokens("scope", make_pattern("offset-2", tokenizer))  # as a package may offer it
    with marked({"scope": ids > 0}), pytest.raises(UserError, match="one target for each query"):
        moving.target(ids)


def test_marks_are_those_of_the_block_around_a_pass(embedded_shards: Path) -> None:
    from gaguide.guidance import Assignment, GuidancePlan, MarkedTokens, guide, marked
    from tests.support.models import tiny_model

    model, ids = tiny_model(), torch.arange(12)[None]
    with guide(model, GuidancePlan((Assignment(MarkedTokens("cue"), (0,)),))) as guidance:
        with marked({"cue": ids % 5 == 1}):
            model(input_ids=ids, use_cache=False)
        assert guidance.loss() > 0
        with pytest.raises(UserError, match="which this text lacks"):
            model(input_ids=ids, use_cache=False)
        with marked({"cue": ids[:, 1:] == 1}), pytest.raises(ValueError, match="shape"):
            model(input_ids=ids, use_cache=False)
