"""Isolated documents in blocks: by a mask of T × T, and by document as a training run computes them.

    python benchmarks/packing.py [--length 1024] [--document 200] [--repeats 15] [--device cpu]

Attention of one layer of gpt2's shape, and a model with two such layers, unguided and with a guided head in
each layer; forward and backward, micro batch of 4. Contenders alternate; medians and their ratios to the mask
are printed.

Shapes: B blocks, H heads, T positions, D head width.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.nn.functional import scaled_dot_product_attention as sdpa
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from gaguide.guidance import Assignment, GuidancePlan, TokenSet, guide
from gaguide.model.documents import by_document, document_ids, document_mask, documents_as_mask
from gaguide.model.packed import isolate_documents, use_packed_attention

_B, _H, _D = 4, 12, 64
_MASK = "a mask of T × T"
Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def document_lengths(length: int, mean: float, seed: int) -> list[list[int]]:
    """Lengths of the documents of each block: log-normal, cut at the blocks' ends as shards are."""
    random = np.random.default_rng(seed)
    blocks = []
    for _ in range(_B):
        lengths: list[int] = []
        while sum(lengths) < length:
            drawn = int(random.lognormal(np.log(mean) - 0.5, 1)) + 1
            lengths.append(min(drawn, length - sum(lengths)))
        blocks.append(lengths)
    return blocks


def by_documents(
    marks: torch.Tensor, q_BHTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor
) -> torch.Tensor:
    """As a training run does: each document by itself, on a GPU variable-length flash attention."""
    return by_document(sdpa_attention_forward)(_Module(), q_BHTD, k_BHTD, v_BHTD, marks)[0].transpose(1, 2)


class _Module:
    is_causal = True


def layers(lengths: list[list[int]], arguments: argparse.Namespace) -> dict[str, Callable[[], float]]:
    """Contenders that run one layer's attention."""
    device, length = torch.device(arguments.device), arguments.length
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    document_BT = torch.tensor([np.repeat(range(len(own)), own).tolist() for own in lengths], device=device)
    mask, marks = document_mask(document_BT), documents_as_mask(document_BT)
    generator = torch.Generator().manual_seed(0)
    shape = (_B, _H, length, _D)
    inputs = [torch.randn(shape, generator=generator).to(device, dtype) for _ in range(3)]
    contenders: dict[str, Attention] = {
        _MASK: partial(sdpa, attn_mask=mask),
        "by document": partial(by_documents, marks),
        "no isolation": partial(sdpa, is_causal=True),
    }
    wanted, got = (run(contenders[name], inputs)[0] for name in (_MASK, "by document"))
    torch.testing.assert_close(got, wanted, rtol=2e-2, atol=1e-5 if device.type == "cpu" else 2e-2)
    return {name: partial(lambda each: run(each, inputs)[1], each) for name, each in contenders.items()}


def models(lengths: list[list[int]], arguments: argparse.Namespace) -> dict[str, Callable[[], float]]:
    """Contenders that run a model of gpt2's width with two layers, one head of each guided or none."""
    device, length = torch.device(arguments.device), arguments.length
    ids_BT = torch.randint(8192, (_B, length), generator=torch.Generator().manual_seed(0)).to(device)
    positions = [np.concatenate([np.arange(n) for n in own]) for own in lengths]
    positions_BT = torch.from_numpy(np.stack(positions)).to(device)
    mask = document_mask(document_ids(positions_BT))
    words = TokenSet("words", frozenset(range(80)))
    config = GPT2Config(
        vocab_size=8192,
        n_positions=length,
        n_layer=2,
        bos_token_id=None,
        eos_token_id=None,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
    )
    contenders: dict[str, Callable[[], float]] = {}
    for name, kwargs in ((_MASK, {"attention_mask": mask}), ("by document", {})):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").to(device).train()
        if not kwargs:
            isolate_documents(model, use_packed_attention(model), length)
        given = {"input_ids": ids_BT, "labels": ids_BT, "position_ids": positions_BT, **kwargs}
        for guided in (False, True):
            plan = GuidancePlan((Assignment(words, (0,)),), weight=3.0) if guided else None
            contenders[f"{name}, {'guided' if guided else 'unguided'}"] = partial(step, model, plan, given)
    return contenders


def step(model: PreTrainedModel, plan: GuidancePlan | None, given: dict[str, torch.Tensor]) -> float:
    """Seconds of forward and backward."""
    model.zero_grad()
    with guide(model, plan) if plan else nullcontext() as guidance:
        begun = _now(model.device)
        loss = model(**given, use_cache=False).loss
        (loss if guidance is None else loss + guidance.loss()).backward()
        return _now(model.device) - begun


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--document", type=float, default=200)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    lengths = document_lengths(arguments.length, arguments.document, seed=0)
    console = Console(width=100)
    console.print(f"{_B} blocks of {arguments.length} tokens, {sum(map(len, lengths))} documents")
    for title, make in (("attention of one layer", layers), ("a model of two layers", models)):
        contenders = make(lengths, arguments)
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for contender in contenders.values():
            contender()
        for _ in range(arguments.repeats):
            for name, contender in contenders.items():
                times[name].append(contender())
        table = Table(title, "median ms", "least ms", "ratio to the mask")
        for name, measured in times.items():
            median = statistics.median(measured)
            base = name.replace("by document", _MASK) if ", " in name else _MASK
            ratio = median / statistics.median(times[base])
            table.add_row(name, f"{median * 1e3:.1f}", f"{min(measured) * 1e3:.1f}", f"{ratio:.2f}")
        console.print(table)
    console.print(
        f"torch {torch.__version__}, load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )


def run(attention: Attention, inputs: list[torch.Tensor]) -> tuple[torch.Tensor, float]:
    """The output, and the seconds of forward and backward."""
    leaves = [each.clone().requires_grad_() for each in inputs]
    begun = _now(leaves[0].device)
    out = attention(*leaves)
    out.sum().backward()
    return out.detach(), _now(leaves[0].device) - begun


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    main()
