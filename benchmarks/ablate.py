"""Removing heads: time, peak memory and numbers, compared with TransformerLens on the same model and text.

    python benchmarks/ablate.py --peer-python VENV/bin/python [--shapes tiny,gpt2] [--repeats 5]

Each side removes heads by zero, one at a time, and gives the loss of every block without each: gaguide by
`gaguide.ablate.text.measure_text` (which also reads attention and norms), TransformerLens by
`run_with_hooks` on `hook_z`, one call a head. Both load the same folder (random weights, large enough that
losses differ), each in a process of its own; rounds alternate. Printed: median seconds of a round and the
median of the rounds' ratios, resident memory added by the rounds at its peak, and the largest difference of
a block's loss. The peer's interpreter has transformer-lens installed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SHAPES = {
    "tiny": {"n_layer": 4, "n_head": 4, "n_embd": 128, "vocab_size": 2048, "length": 128, "blocks": 16,
             "of": 4},
    "gpt2": {"n_layer": 12, "n_head": 12, "n_embd": 768, "vocab_size": 50257, "length": 256, "blocks": 4,
             "of": 1},
}  # fmt: skip
"""GPT-2s, text, and heads that are removed in each layer."""
_BATCH = 4
Losses = list[list[float]]
"""Of each head, the mean loss of each block without it."""


def main() -> None:
    """Compare both sides on every shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--shapes", default="tiny,gpt2")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    if "--serve" in sys.argv:
        at = sys.argv.index("--serve")
        serve(*sys.argv[at + 1 : at + 4])
        return
    options = parser.parse_args()
    for name in options.shapes.split(","):
        with tempfile.TemporaryDirectory() as folder:
            _save(name, Path(folder))
            _compare(name, Path(folder), options.peer_python, options.repeats)


def _save(name: str, folder: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = SHAPES[name]
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            **{key: value for key, value in shape.items() if key not in ("length", "blocks", "of")},
            n_positions=shape["length"], attn_pdrop=0, embd_pdrop=0, resid_pdrop=0,
        )
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=2 / shape["n_embd"] ** 0.5 / 2)
    model.save_pretrained(folder)


def _compare(name: str, folder: Path, peer: str, repeats: int) -> None:
    sides = {
        "gaguide": _Side(sys.executable, "gaguide", name, folder),
        "lens": _Side(peer, "lens", name, folder),
    }
    rounds: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for at in range(repeats + 1):  # the first is not counted
        for side in list(sides) if at % 2 else list(reversed(sides)):
            rounds[side].append(sides[side].run())
    for side in sides.values():
        side.close()
    ours, theirs = (torch.tensor(rounds[side][-1]["losses"]) for side in ("gaguide", "lens"))
    seconds = {side: [one["seconds"] for one in rounds[side][1:]] for side in sides}
    memory = {side: rounds[side][-1]["memory"] for side in sides}
    ratios = [b / a for a, b in zip(seconds["gaguide"], seconds["lens"], strict=True)]
    print(f"{name}: {len(ours)} heads, {ours.shape[1]} blocks of {SHAPES[name]['length']} tokens")
    for side in sides:
        print(f"  {side:8} {statistics.median(seconds[side]):8.3f} s  {memory[side]:8.1f} MiB")
    print(f"  time of the peer: {statistics.median(ratios):.2f} times; memory: "
          f"{memory['lens'] / max(memory['gaguide'], 0.1):.2f} times; largest difference of a loss "
          f"{float((ours - theirs).abs().max()):.1e}; losses differ by up to "
          f"{float((ours - ours.mean(0)).abs().max()):.3f} between heads", flush=True)  # fmt: skip


class _Side:
    """A process that runs rounds on request."""

    def __init__(self, python: str, side: str, name: str, folder: Path) -> None:
        self.process = subprocess.Popen(
            [python, __file__, "--serve", side, name, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )

    def run(self) -> dict[str, Any]:
        """A round's seconds, losses and memory."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        raise SystemExit("a side ended")

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def serve(side: str, name: str, folder: str) -> None:
    """Run a round for every line of standard input."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    shape = SHAPES[name]
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(shape["vocab_size"], (shape["blocks"], shape["length"]), generator=generator)
    keys = [(layer, head) for layer in range(shape["n_layer"]) for head in range(shape["of"])]
    run = {"gaguide": _gaguide, "lens": _lens}[side](folder, ids, keys)
    before = _peak()
    for _ in sys.stdin:
        started = time.perf_counter()
        losses = run()
        print(json.dumps({"seconds": time.perf_counter() - started, "losses": losses,
                          "memory": _peak() - before}), flush=True)  # fmt: skip


def _peak() -> float:
    """Largest resident set so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _gaguide(folder: str, ids: torch.Tensor, keys: list[tuple[int, int]]) -> Callable[[], Losses]:
    from transformers import AutoModelForCausalLM

    from gaguide.ablate.subjects import Subject
    from gaguide.ablate.text import measure_text
    from gaguide.guidance import TokenSet
    from gaguide.model import fuse_activations

    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()
    fuse_activations(model)
    pattern = TokenSet("words", frozenset(range(20)))
    subjects = [Subject(layer, head, "other", pattern) for layer, head in keys]
    batches = [{"input_ids": part} for part in ids.split(_BATCH)]

    def run() -> Losses:
        found = measure_text(model, subjects, batches, ["zero"])
        clean_N = found.loss[id(pattern)].sum(1)
        tokens = ids.shape[1] - 1
        return [((clean_N + found.change[key, "zero"].sum(1)) / tokens).tolist() for key in keys]

    return run


def _lens(folder: str, ids: torch.Tensor, keys: list[tuple[int, int]]) -> Callable[[], Losses]:
    from transformer_lens import TransformerBridge  # type: ignore[import-not-found]
    from transformers import AutoModelForCausalLM

    hf_model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    bridge = TransformerBridge.boot_transformers(folder, hf_model=hf_model, device="cpu")
    heads = bridge.cfg.n_heads

    def remove(head: int) -> Callable[[torch.Tensor, Any], torch.Tensor]:
        def hook(z: torch.Tensor, hook: Any) -> torch.Tensor:
            z = z.clone()
            width = z.shape[-1] // heads if z.ndim == 3 else 0
            if z.ndim == 3:
                z[..., head * width : (head + 1) * width] = 0
            else:
                z[:, :, head] = 0
            return z

        return hook

    @torch.no_grad()
    def run() -> Losses:
        losses: Losses = []
        for layer, head in keys:
            hooks = [(f"blocks.{layer}.attn.hook_z", remove(head))]
            parts = [
                bridge.run_with_hooks(part, return_type="loss", loss_per_token=True, fwd_hooks=hooks).mean(-1)
                for part in ids.split(_BATCH)
            ]
            losses.append(torch.cat(parts).tolist())
        return losses

    return run


if __name__ == "__main__":
    main()
