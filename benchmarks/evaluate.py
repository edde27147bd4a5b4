"""The evaluator against lm-evaluation-harness 0.4.13 at its best batch size, and against a bare forward pass.

    python benchmarks/evaluate.py time CASE --model DIR --data DIR [--prompts N] [--repeats R]
    python benchmarks/evaluate.py bare CASE --model DIR --data DIR [--prompts N] [--repeats R]
    python benchmarks/evaluate.py memory CASE --model DIR --data DIR [--prompts N]

Needs the extra `test`. Both score the same requests with the same model object, alternating; encoding
counts for both, building tasks and loading weights for neither. `bare` leaves the harness out and
alternates the others batch by batch, so that a machine whose speed varies is equally fast for each. The
bare forward pass is that of the model over the distinct tokens (those that each example adds to the ones
before it) without mask or scores, with logits at as many positions as are scored; "body alone" omits the
output layer. There, no token attends to what others share with it; where all prompts begin alike, "in
context" is the bare forward pass over that prefix, then over the other distinct tokens after it, in
transformers' own cache. CASE: memo-trap; disjoint (22 shots, different for every prompt); shared (22 shots,
the same for all); disjoint-1 and shared-1 (the same with choices of one token, which the harness scores in
one pass); choices (10 of them); passages (a passage of Python's documentation, a question, and
the choices " no" and " yes" of one token, the form of BoolQ). With --processor-time, seconds are those of the
processor, all threads together: for a machine that has other work. DIR of the data: the folder with
inverse_scaling/ and prize_csv/.
"""

from __future__ import annotations

import argparse
import ast
import csv
import json
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from bare_forward import Distinct, Question, bare, count_distinct, encoded, in_context
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from gaguide.evaluate.schedule.batches import make_batches
from gaguide.evaluate.schedule.cost import Budget, CostModel
from gaguide.evaluate.score.scorer import Scorer

clock: Callable[[], float] = time.perf_counter
"""Tells the seconds that are counted."""

BUDGET = Budget.of(None, "cpu")
SHOTS = 22
BATCH_SIZES = {"memo-trap": (8, 16, 32), "choices": (8, 16, 32)}
LONG_BATCH_SIZES = (1, 8)
PROMPTS = {"memo-trap": 240, "choices": 40}
LONG_PROMPTS = 12
LONG_PREFIX = 256


def questions(case: str, data: Path, count: int) -> list[Question]:
    """The requests of a case, drawn with a fixed seed from real files."""
    rng = random.Random(0)
    if case == "passages":
        parts = [part for text in topics.values() for part in text.split("\n\n") if 500 < len(part) < 1200]
        ask = "Question: is this about the value of a name?\nAnswer:"
        return [(f"{part}\n{ask}", [" no", " yes"]) for part in rng.sample(parts, count)]
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
    scores: dict[tuple[int, int], float] = {}
    for some in our_batches(model, tokenizer, asked):
        scores |= some
    return [[scores[at, nth] for nth in range(len(classes))] for at, (_, classes) in enumerate(asked)]


def our_batches(model: Any, tokenizer: Any, asked: list[Question]) -> Iterator[dict[tuple[int, int], float]]:
    """Yields the scores of each batch."""
    examples = encoded(model, tokenizer, asked)
    batches = make_batches(examples, BUDGET, CostModel.of(model.config))
    scorer = Scorer(model, model.device)
    scorer.detect_sharing(batches)
    for batch in batches:
        yield scorer.score(batch.rows, batch.prefix)


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


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and the result of `work`."""
    began = clock()
    result = work()
    return clock() - began, result


def in_turns(works: dict[str, Iterator[Any]]) -> dict[str, float]:
    """Seconds of each work; they alternate step by step until all have ended."""
    seconds, ended = dict.fromkeys(works, 0.0), object()
    left = dict(works)
    while left:
        for name, work in list(left.items()):
            began = clock()
            if next(work, ended) is ended:
                del left[name]
            seconds[name] += clock() - began
    return seconds


def load(folder: Path) -> tuple[Any, Any]:
    """The model in fp32 and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def time_case(arguments: argparse.Namespace) -> None:
    """Alternate the harness, gaguide and the bare forward pass; print how they compare."""
    asked, model, tokenizer, held, title = read_case(arguments)
    best, tried = best_batch_size(model, tokenizer, asked, arguments.case)
    contenders: dict[str, Callable[[], Any]] = {
        f"lm-eval, batch {best}": lambda: harness(model, tokenizer, asked, best),
        "gaguide": lambda: ours(model, tokenizer, asked),
        "bare forward": lambda: list(bare(model, held.lengths, held.scored)),
        "bare forward, body alone": lambda: list(bare(model, held.lengths)),
    }
    rounds, found = [], {}
    for _ in range(arguments.repeats):
        rounds.append({})
        for name, work in contenders.items():
            rounds[-1][name], found[name] = timed(work)
    show_times(f"{title}; {tried}", rounds)
    show_differences(found[f"lm-eval, batch {best}"], found["gaguide"])


def bare_case(arguments: argparse.Namespace) -> None:
    """Alternate gaguide and the bare forward pass batch by batch; print how they compare."""
    asked, model, tokenizer, held, title = read_case(arguments)
    rounds = []
    for _ in range(arguments.repeats):
        contenders: dict[str, Iterator[Any]] = {
            "gaguide": our_batches(model, tokenizer, asked),
            "bare forward": bare(model, held.lengths, held.scored),
            "bare forward, body alone": bare(model, held.lengths),
        }
        if held.prefix >= LONG_PREFIX:
            contenders["bare forward, in context"] = in_context(model, held)
        rounds.append(in_turns(contenders))
    show_times(title, rounds)


def read_case(arguments: argparse.Namespace) -> tuple[list[Question], Any, Any, Distinct, str]:
    """The requests, model, tokenizer, distinct tokens, and a title."""
    asked = questions(
        arguments.case, arguments.data, arguments.prompts or PROMPTS.get(arguments.case, LONG_PROMPTS)
    )
    model, tokenizer = load(arguments.model)
    held = count_distinct(model, tokenizer, asked)
    title = f"{arguments.case}: {len(asked)} prompts, {held.tokens} distinct tokens, {held.scored} scored"
    return asked, model, tokenizer, held, title


def best_batch_size(model: Any, tokenizer: Any, asked: list[Question], case: str) -> tuple[int, str]:
    """The harness's fastest batch size on a quarter of the prompts, and the times of all sizes."""
    few = asked[: max(3, len(asked) // 4)]
    sizes = {
        size: timed(lambda size=size: harness(model, tokenizer, few, size))[0]  # type: ignore[misc]
        for size in BATCH_SIZES.get(case, LONG_BATCH_SIZES)
    }
    tried = ", ".join(f"{size}: {took:.1f} s" for size, took in sizes.items())
    return min(sizes, key=sizes.__getitem__), f"lm-eval on {len(few)}: {tried}"


def show_times(title: str, rounds: list[dict[str, float]]) -> None:
    """Print the contenders' medians and their ratios to gaguide, round by round."""
    table = Table("contender", "median", "all rounds", "this / gaguide", "median of the rounds", title=title)
    middle = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    for name, median in middle.items():
        ratios = [one[name] / one["gaguide"] for one in rounds]
        table.add_row(
            name,
            f"{median:.2f} s",
            ", ".join(f"{one[name]:.2f}" for one in rounds),
            f"{median / middle['gaguide']:.3f}",
            f"{statistics.median(ratios):.3f} ({', '.join(f'{ratio:.3f}' for ratio in ratios)})",
        )
    Console(width=150).print(table)


def show_differences(theirs: list[list[float]], mine: list[list[float]]) -> None:
    """Print how far the scores of both differ."""
    pairs = [pair for a, b in zip(theirs, mine, strict=True) for pair in zip(a, b, strict=True)]
    same = sum(a.index(max(a)) == b.index(max(b)) for a, b in zip(theirs, mine, strict=True))
    largest = max(abs(a - b) for a, b in pairs)
    print(f"largest difference of a log-probability {largest:.1e}; same predictions {same}/{len(mine)}")


def memory_case(arguments: argparse.Namespace) -> None:
    """Print the peak resident memory above the loaded model's, each contender in a separate process."""
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
    """Resident bytes of this process: now (VmRSS) or at its peak (VmHWM)."""
    (kilobytes,) = re.findall(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kilobytes) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("time", "bare", "memory", "child"))
    parser.add_argument(
        "case", choices=("memo-trap", "disjoint", "shared", "disjoint-1", "shared-1", "choices", "passages")
    )
    parser.add_argument("--model", type=Path, required=True, help="folder with gpt2's shape and tokenizer")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--prompts", type=int)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--contender", default="gaguide", help=argparse.SUPPRESS)
    parser.add_argument("--processor-time", action="store_true")
    arguments = parser.parse_args()
    global clock
    if arguments.processor_time:
        clock = time.process_time
    cases = {"time": time_case, "bare": bare_case, "memory": memory_case, "child": child_case}
    cases[arguments.what](arguments)


if __name__ == "__main__":
    main()
