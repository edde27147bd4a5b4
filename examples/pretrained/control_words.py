"""A control lexicon: for each word of a lexicon another word, about as frequent and in no shipped lexicon.

    python control_words.py CORPUS_FOLDER OUTPUT.yaml --lexicon contrast --seed 0

A head that is guided to these words instead gets the same pull on about as many tokens; what differs is what
the words mean. CORPUS_FOLDER holds Parquet files with a column `text`.
"""

from __future__ import annotations

import argparse
import math
import random
import re
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import yaml

from gaguide.files import write_text
from gaguide.guidance import get_lexicon, shipped_lexicons

WITHIN = 1.1
"""Each word is drawn from those whose frequency differs by at most this factor, else it is the nearest."""
_WORD = re.compile(r"[a-z]{2,}")


def count_words(corpus: Path) -> Counter[str]:
    """How often each word of lower-case letters occurs in a folder of Parquet files."""
    found: Counter[str] = Counter()
    for path in sorted(corpus.glob("*.parquet")):
        for text in pq.read_table(path, columns=["text"]).column("text").to_pylist():
            found.update(_WORD.findall((text or "").lower()))
    return found


def choose_control(counts: Counter[str], words: list[str], excluded: set[str], seed: int) -> dict[str, str]:
    """Word → its control, drawn without repetition; words that the text lacks have none."""
    draw, taken = random.Random(seed), set(excluded) | set(words)
    chosen: dict[str, str] = {}
    for word in sorted(set(words), key=lambda each: (-counts[each], each)):
        if not counts[word]:
            continue
        distance = {
            each: abs(math.log(counts[each] / counts[word])) for each in sorted(counts) if each not in taken
        }
        near = [each for each, far in distance.items() if far <= math.log(WITHIN)]
        chosen[word] = draw.choice(near or [min(distance, key=distance.__getitem__)])
        taken.add(chosen[word])
    return chosen


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--lexicon", default="contrast")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    counts = count_words(arguments.corpus)
    excluded = {word for name in shipped_lexicons() for word in get_lexicon(name).words}
    chosen = choose_control(counts, list(get_lexicon(arguments.lexicon).words), excluded, arguments.seed)
    for word, control in chosen.items():
        print(f"{word} ({counts[word]:,}) → {control} ({counts[control]:,})")
    own, other = (sum(counts[word] for word in words) for words in (chosen.keys(), chosen.values()))
    print(f"{own:,} occurrences of the lexicon, {other:,} of the control")
    write_text(arguments.output, yaml.safe_dump({f"{arguments.lexicon}-control": list(chosen.values())}))


if __name__ == "__main__":
    main()
