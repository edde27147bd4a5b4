"""The evaluator against lm-evaluation-harness 0.4.13 at its best batch size, and against a bare forward pass.

    python benchmarks/evaluate.py time CASE --model DIR --data DIR [--prompts N] [--repeats R]
    python benchmarks/evaluate.py memory CASE --model DIR --data DIR [--prompts N]

Needs the extra test. Both score the same requests with the same model object, alternating; texts are
encoded within the time of both, tasks are built and weights loaded before. The bare forward pass is that of
the model over the distinct tokens (what each example adds to the ones before it) without any mask or score,
with logits at as many positions as are scored; "body alone" leaves the output layer out. CASE: memo-trap;
disjoint (22 shots, every prompt its own); shared (22 shots, the same for all); disjoint-1 and shared-1 (the
same with choices of one token, which the harness scores in one pass); choices (10 of them).
DIR of the data: the folder that holds inverse_scaling/ and prize_csv/.
"""

from __future__ import annotations

import argparse
import ast
import csv
import json
import math
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from gaguide.evaluate.encode import Encoder, encode_all
from gaguide.evaluate.rows import TokenSequence, added_tokens, build_row
from gaguide.evaluate.schedule import Budget, CostModel, make_batches
from gaguide.evaluate.score import Scorer

Question = tuple[str, list[str]]
"""A prompt and its continuations."""

BUDGET = Budget.of(None, "cpu")
BARE_TOKENS = 512
"""Of a batch of the bare forward pass: its best of 256 … 4,096 on a CPU with short rows."""
SHOTS = 22
BATCH_SIZES = {"memo-trap": (8, 16, 32), "choices": (8, 16, 32)}
LONG_BATCH_SIZES = (1, 8)
PROMPTS = {"memo-trap": 240, "choices": 40}
LONG_PROMPTS = 12


def questions(case: str, data: Path, count: int) -> list[Question]:
    """The requests of a case, drawn with a fixed seed from real files."""
    rng = random.Random(0)
    if case == "memo-trap":
        lines = (data / "inverse_scaling" / "memo-trap_classification.jsonl").read_text("utf-8").splitlines()
        rows = [json.loads(line) for line in rng.sample(lines, count)]
        return [(row["prompt"], ast.literal_eval(row["classes"])) for row in rows]
    with (data / "prize_csv" / "syllogism-0shot_classification.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    shown = [row["prompt"] + ast.literal_eval(row["classes"])[int(row["answer_index"])] for row in rows]
    asked = rng.sample(range(len(rows)), count)
    if case == "choices":
        classes = [f" {word} of the two." for word in ("Each", "One", "None", "Both", "Any", "Some")]
        classes += [" Yes, it is.", " No, it is not.", " Perhaps.", " It depends."]
        return [(rows[at]["prompt"], classes) for at in asked]
    classes = [" Yes", " No"] if case.endswith("-1") else [" Yes.", " No."]
    fixed = rng.sample(shown, SHOTS)
    found = []
    for at in asked:
        shots = fixed if case.startswith("shared") else rng.sample(shown, SHOTS)
        found.append(("\n\n".join([*shots, rows[at]["prompt"]]), classes))
    return found


def ours(model: Any, tokenizer: Any, asked: list[Question]) -> list[list[float]]:
    """gaguide's scores, from texts."""
    encoder = Encoder(tokenizer, model.config.max_position_embeddings)
    examples = []
    for at, (prompt, classes) in enumerate(asked):
        pairs = encode_all(encoder, [(prompt, text) for text in classes], "")
        examples.append([TokenSequence(p.input_ids, p.target_ids, (at, nth)) for nth, p in enumerate(pairs)])
    batches = make_batches(examples, BUDGET, CostModel.of(model.config))
    scorer = Scorer(model, model.device)
    scorer.check([row for batch in batches for row in batch.rows])
    scores: dict[tuple[int, int], float] = {}
    for batch in batches:
        scores |= scorer.score(batch.rows)
    return [[scores[at, nth] for nth in range(len(classes))] for at, (_, classes) in enumerate(asked)]


def harness(model: Any, tokenizer: Any, asked: list[Question], batch_size: int) -> list[list[float]]:
    """lm-evaluation-harness's scores, from texts."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    scorer = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    requests = [
        Instance("loglikelihood", {}, (prompt, text), nth)
        for prompt, classes in asked
        for nth, text in enumerate(classes)
    ]
    flat = iter(scorer.loglikelihood(requests, disable_tqdm=True))
    return [[next(flat)[0] for _ in classes] for _, classes in asked]


def distinct_lengths(model: Any, tokenizer: Any, asked: list[Question]) -> tuple[list[int], int]:
    """Tokens that each example adds to those before it, in sorted order; the scored ones of all."""
    encoder = Encoder(tokenizer, model.config.max_position_embeddings)
    examples = []
    for prompt, classes in asked:
        pairs = encode_all(encoder, [(prompt, text) for text in classes], "")
        examples.append(sorted(TokenSequence(p.input_ids, p.target_ids, (0, 0)) for p in pairs))
    examples.sort()
    before: tuple[int, ...] = ()
    lengths, scored = [], 0
    for sequences in examples:
        lengths.append(added_tokens(before, sequences))
        scored += build_row(sequences).scored
        before = sequences[-1].input_ids
    return sorted((length for length in lengths if length), reverse=True), scored


@torch.inference_mode()
def bare(model: Any, lengths: list[int], scored: int = 0) -> None:
    """The body over rows of these lengths in padded batches; logits at `scored` positions."""
    share = scored / sum(lengths)
    limit = model.config.max_position_embeddings
    rows = [min(limit, length - at) for length in lengths for at in range(0, length, limit)]
    while rows:
        count = max(1, BARE_TOKENS // rows[0])
        ids_BT = torch.randint(0, model.config.vocab_size, (len(rows[:count]), rows[0]))
        body = model.base_model(input_ids=ids_BT.to(model.device), use_cache=False)
        if scored:
            hidden_ND = body.last_hidden_state.flatten(0, 1)
            model.get_output_embeddings()(hidden_ND[: math.ceil(share * sum(rows[:count]))])
        rows = rows[count:]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what `work` gives."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def load(folder: Path) -> tuple[Any, Any]:
    """The model in fp32 and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def time_case(arguments: argparse.Namespace) -> None:
    """Alternate the contenders; the harness's batch size is the fastest on a quarter of the prompts."""
    case = arguments.case
    asked = questions(case, arguments.data, arguments.prompts or PROMPTS.get(case, LONG_PROMPTS))
    model, tokenizer = load(arguments.model)
    few = asked[: max(3, len(asked) // 4)]
    sizes = {
        size: timed(lambda size=size: harness(model, tokenizer, few, size))[0]  # type: ignore[misc]
        for size in BATCH_SIZES.get(case, LONG_BATCH_SIZES)
    }
    best = min(sizes, key=sizes.__getitem__)
    lengths, scored = distinct_lengths(model, tokenizer, asked)
    contenders: dict[str, Callable[[], Any]] = {
        f"lm-eval, batch {best}": lambda: harness(model, tokenizer, asked, best),
        "gaguide": lambda: ours(model, tokenizer, asked),
        "bare forward": lambda: bare(model, lengths, scored),
        "bare forward, body alone": lambda: bare(model, lengths),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    found = {}
    for _ in range(arguments.repeats):
        for name, work in contenders.items():
            took, found[name] = timed(work)
            seconds[name].append(took)
    theirs, mine = found[f"lm-eval, batch {best}"], found["gaguide"]
    pairs = [pair for a, b in zip(theirs, mine, strict=True) for pair in zip(a, b, strict=True)]
    same = sum(a.index(max(a)) == b.index(max(b)) for a, b in zip(theirs, mine, strict=True))
    tried = ", ".join(f"{size}: {took:.1f} s" for size, took in sizes.items())
    counted = f"{len(asked)} prompts, {sum(lengths)} distinct tokens, {scored} scored"
    table = Table(
        "contender", "median", "all rounds", "lm-eval's time / this",
        title=f"{case}: {counted}; lm-eval on {len(few)}: {tried}",
    )  # fmt: skip
    base = statistics.median(seconds[f"lm-eval, batch {best}"])
    for name, rounds in seconds.items():
        median = statistics.median(rounds)
        table.add_row(
            name, f"{median:.2f} s", ", ".join(f"{one:.2f}" for one in rounds), f"{base / median:.2f}"
        )
    console = Console(width=130)
    console.print(table)
    console.print(
        f"largest difference of a log-probability {max(abs(a - b) for a, b in pairs):.1e}; "
        f"same predictions {same}/{len(asked)}"
    )
    for name in contenders:
        ratios = [one / other for one, other in zip(seconds["gaguide"], seconds[name], strict=True)]
        if name != "gaguide":
            shown = ", ".join(f"{ratio:.3f}" for ratio in ratios)
            console.print(f"gaguide / {name}: median of the rounds {statistics.median(ratios):.3f} ({shown})")


def memory_case(arguments: argparse.Namespace) -> None:
    """Peak resident memory above the loaded model's, each contender in a process of its own."""
    sizes = BATCH_SIZES.get(arguments.case, LONG_BATCH_SIZES)
    table = Table("contender", "peak above the loaded model", title=f"{arguments.case}: memory")
    for name in ["gaguide", *(f"lm-eval {size}" for size in sizes)]:
        command = [sys.executable, __file__, "child", arguments.case, "--model", str(arguments.model)]
        command += ["--data", str(arguments.data), "--contender", name]
        if arguments.prompts:
            command += ["--prompts", str(arguments.prompts)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        table.add_row(name, f"{int(done.stdout.splitlines()[-1]) / 2**20:,.0f} MiB")
    Console(width=110).print(table)


def child_case(arguments: argparse.Namespace) -> None:
    """Score once and print the peak in bytes."""
    asked = questions(
        arguments.case, arguments.data, arguments.prompts or PROMPTS.get(arguments.case, LONG_PROMPTS)
    )
    model, tokenizer = load(arguments.model)
    if arguments.contender == "gaguide":
        ours(model, tokenizer, asked[:1])
        before = resident("VmRSS")
        ours(model, tokenizer, asked)
    else:
        size = int(arguments.contender.split()[1])
        harness(model, tokenizer, asked[:1], 1)
        before = resident("VmRSS")
        harness(model, tokenizer, asked, size)
    print(resident("VmHWM") - before)


def resident(field: str) -> int:
    """Bytes of this process, now (VmRSS) or at most so far (VmHWM)."""
    (kilobytes,) = re.findall(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kilobytes) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("time", "memory", "child"))
    parser.add_argument(
        "case", choices=("memo-trap", "disjoint", "shared", "disjoint-1", "shared-1", "choices")
    )
    parser.add_argument("--model", type=Path, required=True, help="folder with gpt2's shape and tokenizer")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--prompts", type=int)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--contender", default="gaguide", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    {"time": time_case, "memory": memory_case, "child": child_case}[arguments.what](arguments)


if __name__ == "__main__":
    main()
