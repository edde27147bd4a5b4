"""The generated set about negation: no shortcut beats chance, in every block; and the controls."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gaguide.cli import make_app
from gaguide.evaluate.results.metrics import score_example
from gaguide.evaluate.results.parts import part_results
from gaguide.evaluate.tasks.antonyms import seed_antonyms, wordnet_antonyms
from gaguide.evaluate.tasks.balanced_negation import BLOCK, balanced_rows
from gaguide.evaluate.tasks.controls import change_cues, control_rows
from gaguide.evaluate.tasks.example import Example
from gaguide.evaluate.tasks.read import read_tasks

Rule = Callable[[dict[str, Any]], str]
ROWS = list(balanced_rows(seed_antonyms(), random.Random(3)))


def stated(row: dict[str, Any]) -> str:
    """The class that the prompt repeats after naming both."""
    return next(one for one in row["classes"] if row["prompt"].count(one.strip()) > 1)


def other(row: dict[str, Any]) -> str:
    return next(one for one in row["classes"] if one != stated(row))


def named(row: dict[str, Any], last: bool) -> str:
    order = sorted(row["classes"], key=lambda one: re.search(rf"\b{one.strip()}\b", row["prompt"]).start())  # type: ignore[union-attr]
    return order[-1 if last else 0]


def words(row: dict[str, Any]) -> set[str]:
    return set(re.findall(r"\w+", row["prompt"].lower()))


RULES: dict[str, Rule] = {
    "the first class": lambda row: row["classes"][0],
    "the first in the alphabet": lambda row: min(row["classes"]),
    "the longer class, or the first": lambda row: max(sorted(row["classes"]), key=len),
    "the first named": lambda row: named(row, last=False),
    "the last named": lambda row: named(row, last=True),
    "the repeated word": stated,
    "the other word": other,
    "by the cue": lambda row: other(row) if "not" in words(row) else stated(row),
    "against the cue": lambda row: stated(row) if "not" in words(row) else other(row),
    "position by the cue": lambda row: row["classes"]["not" in words(row)],
    "position by the prompt's length": lambda row: row["classes"][len(row["prompt"]) % 2],
    "word by the prompt's length": lambda row: (stated if len(row["prompt"]) % 2 else other)(row),
    "position by the order of naming": lambda row: row["classes"][
        named(row, last=False) == row["classes"][0]
    ],
}


def right(row: dict[str, Any], rule: Rule) -> bool:
    return rule(row) == row["classes"][row["answer_index"]]


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_scores_exactly_chance_in_every_block(rule: str) -> None:
    for start in range(0, len(ROWS), BLOCK):
        block = ROWS[start : start + BLOCK]
        assert sum(right(row, RULES[rule]) for row in block) == BLOCK / 2, block[0]


def test_blocks_are_balanced_over_labels_positions_cues_and_their_pairs() -> None:
    for start in range(0, len(ROWS), BLOCK):
        block = ROWS[start : start + BLOCK]
        facts = [
            (row["classes"][row["answer_index"]], row["answer_index"], "not" in words(row), stated(row))
            for row in block
        ]
        for one, two in product(range(4), repeat=2):
            if one != two:
                assert set(Counter((fact[one], fact[two]) for fact in facts).values()) == {BLOCK // 4}
        assert len({row["prompt"] for row in block}) == BLOCK
        assert set(Counter(row["group"] for row in block).values()) == {4}


def test_the_lengths_of_prompts_do_not_tell_the_condition() -> None:
    lengths: dict[str, Counter[int]] = {}
    for row in ROWS:
        lengths.setdefault(row["part"], Counter())[len(row["prompt"])] += 1
    assert len(lengths) == 4 and len({json.dumps(sorted(one.items())) for one in lengths.values()}) == 1


def test_no_single_answer_gets_a_group_right() -> None:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in ROWS:
        groups.setdefault(row["group"], []).append(row)
    for rule in RULES.values():
        assert not any(all(right(row, rule) for row in group) for group in groups.values())


def test_the_built_in_set_is_whole_blocks_of_the_same_rows() -> None:
    (task,) = read_tasks(["negation-balanced"], None, None)
    assert len(task.examples) % BLOCK == 0 and not task.warnings
    assert read_tasks(["negation-balanced"], None, None)[0].examples == task.examples


def _wordnet(folder: Path) -> Path:
    """Three adjectives in the layout of wndb(5WN), two of them each other's antonyms."""
    folder.mkdir()
    (folder / "data.adj").write_text(
        "  1 This software and database is being provided to you\n"
        "00000100 00 a 02 big 0 large 0 002 ! 00000200 a 0101 & 00000300 a 0000 | above average in size\n"
        "00000200 00 a 02 little 0 small(p) 1 002 ! 00000100 a 0101 ! 00000100 a 0202 | limited in size\n"
        "00000300 00 s 01 unlittle 0 001 ! 00000200 a 0101 | not little\n"
    )
    lines = ["big%3:00:01:: 1 90", "little%3:00:03:: 1 50", "unlittle%3:00:00:: 1 40", "large%3:00:00:: 1 9"]
    (folder / "cntlist.rev").write_text("".join(f"{line}\n" for line in [*lines, "small%1:00:00:: 1 90"]))
    return folder


def test_wordnet_gives_frequent_antonyms_without_negating_prefixes(tmp_path: Path) -> None:
    found = wordnet_antonyms(_wordnet(tmp_path / "wn"))
    assert [(one.first, one.second) for one in found] == [("big", "little")]


def test_no_shipped_pair_has_a_negating_prefix() -> None:
    for one in seed_antonyms():
        assert one.first not in one.second and one.second not in one.first, one
        assert len(one.nouns) == len(set(one.nouns)) == 5


def test_make_negation_writes_the_same_file_for_a_seed(tmp_path: Path) -> None:
    wordnet = _wordnet(tmp_path / "wn")
    paths = [tmp_path / f"{name}.jsonl" for name in "abc"]
    for path, seed in zip(paths, ("1", "1", "2"), strict=True):
        call = [
            "eval",
            "make-negation",
            str(path),
            "--count",
            "64",
            "--seed",
            seed,
            "--wordnet",
            str(wordnet),
        ]
        done = CliRunner().invoke(make_app(), call)
        assert done.exit_code == 0, done.output
    assert paths[0].read_bytes() == paths[1].read_bytes() != paths[2].read_bytes()
    (task,) = read_tasks([str(paths[0])], None, None)
    assert len(task.examples) == 64 and {one.part for one in task.examples} == {
        "negated", "pseudo", "implied", "affirmed"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("removed", "The man does own a dog, can swim and is kind with a hat. All smile."),
        (
            "replaced",
            "The man does now own a dog, can now swim and is now kind besides a hat. Now all smile.",
        ),
        (
            "reworded",
            "The man does by no means own a dog, can by no means swim and is by no means kind lacking a hat. "
            "By no means all smile.",
        ),
        (
            "not-only",
            "The man doesn’t only own a dog, can't only swim and is not only kind without a hat. "
            "Not only all smile.",
        ),
    ],
)
def test_controls_change_every_cue(variant: str, expected: str) -> None:
    text = "The man doesn’t own a dog, can't swim and is not kind without a hat. Not all smile."
    assert change_cues(text, variant) == expected


def test_controls_leave_other_words_and_kept_texts_alone() -> None:
    text = "Nothing else matters: knot, notable, snow, nor'easter. Answer yes or no."
    assert change_cues(text, "removed", ["Answer yes or no."]).endswith("Answer yes or no.")
    assert "knot, notable, snow" in change_cues(text, "removed")
    rows = control_rows([Example("1", ("All is well.",), (" a", " b"), 0)], ["removed"])
    assert rows == []


def test_a_model_that_ignores_the_negation_answers_its_controls_the_same() -> None:
    asked = [Example(str(at), (f"It is not {at}.",), (" a", " b"), at % 2) for at in range(6)]
    rows = control_rows(asked, ["removed", "reworded"])
    examples = [
        Example(
            row["id"], (row["prompt"],), tuple(row["classes"]), row["answer_index"],
            group=row["group"], part=row["part"],
        )
        for row in rows
    ]  # fmt: skip
    blind = [score_example("classification", one, (-1.0, -2.0), (1, 1)) for one in examples]
    reads = [
        score_example("classification", one, (-1.0, -2.0) if one.part == "removed" else (-2.0, -1.0), (1, 1))
        for one in examples
    ]
    for scored, same in ((blind, (1.0, 1.0)), (reads, (0.0, 1.0))):
        parts = part_results("classification", scored)
        assert list(parts) == ["original", "removed", "reworded"]
        found = [parts[name].same_as_original for name in ("removed", "reworded")]
        assert tuple(one.value for one in found if one is not None) == same
        assert parts["original"].same_as_original is None and parts["original"].count == 6


def test_wrong_arguments_are_all_reported(tmp_path: Path) -> None:
    call = [
        "eval",
        "make-negation",
        str(tmp_path / "no" / "x.csv"),
        "--count",
        "30",
        "--wordnet",
        str(tmp_path),
    ]
    done = CliRunner().invoke(make_app(), call)
    text = f"{done.output}{done.exception}"
    assert "must end in .jsonl" in text and "multiple of 16" in text and "does not contain data.adj" in text
