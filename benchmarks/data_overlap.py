"""The search for evaluation examples in training text, compared with building it.

    python benchmarks/data_overlap.py [--examples 10000] [--copies 4] [--source FILES]

A search in finished shards, and a build that leaves the examples out, against a build that does not; one
process each in turns, with its peak memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from data import add_source_arguments, prepared_source, show

_HERE = Path(__file__).resolve()


def overlap(arguments: argparse.Namespace) -> None:
    with prepared_source(arguments) as (folder, tokenizer, source, size):
        write_examples(folder / "examples.json", source, arguments.examples)
        names = ("gaguide", "gaguide, decontaminated", "search of the shards")
        times: dict[str, list[float]] = {name: [] for name in names}
        memory: dict[str, list[float]] = {name: [] for name in names}
        tokens = 0
        for turn in range(arguments.repeats):
            for number, name in enumerate(names):
                options = [str(folder), tokenizer, str(turn), str(number)]
                command = [sys.executable, str(_HERE), "searched", *options]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                seconds, peak, tokens = json.loads(done.stdout.splitlines()[-1])
                times[name].append(seconds)
                memory[name].append(peak)
        title = f"build and search of {size / 1e6:.0f} MB, {tokens:,} tokens, {arguments.examples:,} examples"
        show(f"{title}, one process", times, "s", 1)
        for name in names:
            rate = tokens / statistics.median(times[name])
            print(f"{name}: {rate / 1e6:.2f} M tokens/s, peak {statistics.median(memory[name]) / 1e6:.0f} MB")


def write_examples(path: Path, source: Path, count: int) -> None:
    """Examples of 20 to 60 words: of every hundredth the text is in the source, of the others shuffled."""
    random = np.random.default_rng(0)
    with source.open(encoding="utf-8") as lines:
        documents = [json.loads(line)["text"].split() for _, line in zip(range(20_000), lines)]
    long = [words for words in documents if len(words) >= 60]
    texts = []
    for number in range(count):
        words = long[random.integers(len(long))]
        first, length = random.integers(len(words) - 59), random.integers(20, 61)
        own = words[first : first + length]
        texts.append(" ".join(own if number % 100 == 0 else random.permutation(own)))
    path.write_text(json.dumps(texts), encoding="utf-8")


def searched(arguments: argparse.Namespace) -> None:
    """In a new process: seconds and peak memory of a build (0), one with examples (1) or a search (2)."""
    import resource

    from gaguide.data import BuildRequest, build_shards, read_manifest
    from gaguide.data.overlap.decontaminate import Decontamination
    from gaguide.data.overlap.find import find_overlap
    from gaguide.data.overlap.index import EvaluationText, WordIndex

    folder, number = arguments.folder, arguments.number
    texts = json.loads((folder / "examples.json").read_text(encoding="utf-8"))
    examples = [EvaluationText("benchmark", str(at), (text,)) for at, text in enumerate(texts)]
    plain = folder / f"shards-{arguments.turn}"
    begun = time.perf_counter()
    if number < 2:
        decontamination = Decontamination(WordIndex(examples)) if number else None
        source, output = (str(folder / "source.jsonl"),), plain if number == 0 else Path(f"{plain}-clean")
        request = BuildRequest(
            source, output, arguments.tokenizer, validation_fraction=0, decontamination=decontamination
        )
        build_shards(request)
    else:
        found = find_overlap([str(plain)], examples, Path(f"{plain}-overlap")).examples
        assert all(each.seen_words for each in found[::100]), "a planted example was missed"
    seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps([seconds, peak, read_manifest(plain).tokens]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--examples", type=int, default=10_000)
    add_source_arguments(parser)
    commands = parser.add_subparsers(dest="command")
    command = commands.add_parser("searched", help="one contender; for this script")
    command.add_argument("folder", type=Path)
    command.add_argument("tokenizer")
    command.add_argument("turn", type=int)
    command.add_argument("number", type=int)
    arguments = parser.parse_args()
    (searched if arguments.command else overlap)(arguments)


if __name__ == "__main__":
    main()
