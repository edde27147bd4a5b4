"""Regular expressions in lexicons: matches compared with re on the text, refusals, compiled graphs."""

from __future__ import annotations

import gc
import pickle
import re
import time
import weakref
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from gaguide.cli import make_app
from gaguide.data import load_tokenizer
from gaguide.errors import UserError
from gaguide.guidance import get_lexicon, make_pattern, read_lexicons
from gaguide.guidance.expression_rules import LONGEST, check_expression
from gaguide.guidance.words import WordSet
from tests.support.patience import patience

TEXT = (
    "It isn’t UNKINDLY said, but Unhappily the sun won't shine; ununderstandably (unfairly) «naïve-unjustly» "
    "don'ts, can't_ 日本 unduly日, under unruly. DON'T"
)
EXPRESSIONS = (r"\w+n't", r"un\w{3,}ly", "na[ï]ve")


@pytest.fixture(scope="module")
def tokenizer(embedded_shards: Path):
    return load_tokenizer(embedded_shards / "tokenizer")


def matches(word: str) -> bool:
    plain = word.replace("’", "'")
    forms = {plain, plain.lower()} if plain in (plain.capitalize(), plain.upper()) else {plain}
    return any(re.fullmatch(one, form) for one in EXPRESSIONS for form in forms)


def test_all_tokens_of_words_that_match_as_re_finds_them(tokenizer) -> None:
    pattern = WordSet.build(
        "own", ["but"], tokenizer, exceptions=["unruly", "unfairly"], expressions=EXPRESSIONS
    )
    encoded = tokenizer(TEXT, add_special_tokens=False, return_offsets_mapping=True)
    words = [one for one in re.finditer(r"\w+(?:['’]\w+)*", TEXT) if matches(one[0]) and one[0] != "unfairly"]
    found = [one[0] for one in words]
    assert found == [
        "isn’t",
        "UNKINDLY",
        "Unhappily",
        "won't",
        "ununderstandably",
        "naïve",
        "unjustly",
        "DON'T",
    ]
    spans = [one.span() for one in words] + [one.span() for one in re.finditer("but", TEXT)]
    want = [any(a < end and start < b for a, b in spans) for start, end in encoded["offset_mapping"]]
    ids = torch.tensor([encoded["input_ids"]])
    assert pattern.target(ids).marked_BT[0].tolist() == want
    assert pattern.words == (
        "but",
        *(f"regex {one}" for one in EXPRESSIONS),
        "except unruly",
        "except unfairly",
    )


def test_special_tokens_and_unknown_ids_end_a_word(tokenizer) -> None:
    pattern = WordSet.build("own", [], tokenizer, expressions=[r"un\w+ly"])
    ids = tokenizer("unjustly", add_special_tokens=False)["input_ids"]
    assert len(ids) > 1
    for between in (tokenizer.eos_token_id, 10**6, -100):
        cut = torch.tensor([[*ids, between], [*ids[:1], between, *ids[1:]][: len(ids) + 1]])
        assert pattern.target(cut).marked_BT.tolist() == [
            [True] * len(ids) + [False],
            [False] * (len(ids) + 1),
        ]
    split = tokenizer("naïve日", add_special_tokens=False)[
        "input_ids"
    ]  # bytes of characters in several tokens
    assert (
        WordSet.build("own", [], tokenizer, expressions=["naïve."])
        .target(torch.tensor([split]))
        .marked_BT.all()
    )


BAD = {
    "(a": "is not a valid regular expression", "(\\w+)*": "repeats more than one character",
    "(a|aa)+b": "repeats more than one character", "(?:a{1,9}){2,9}": "repeats more than one character",
    r"\w*\w*\w*\w*\w*x": "too many ways", "a?" * 40 + "a" * 40: "too many ways", r"(a)\1": "refers back",
    "(?<=a)b": "looks ahead or behind", r"\bnot$": "has an anchor", "a*": "matches the empty word",
}  # fmt: skip


@pytest.mark.parametrize("expression", BAD)
def test_what_is_wrong_or_could_take_for_ever_is_refused_by_its_form(expression: str) -> None:
    with pytest.raises(UserError, match=BAD[expression]) as caught:
        check_expression(expression, "own.regex")
    assert caught.value.faults[0].value == expression


def test_what_is_accepted_is_fast_on_the_worst_word() -> None:
    for expression in (r"\w*\w*\w*x", "(un|in|dis|non)\\w{3,}(ly|ness)?", "[a-z]+n't", "a?" * 9 + "b"):
        check_expression(expression, "f")
        started = time.monotonic()
        re.fullmatch(expression, "a" * LONGEST)
        assert time.monotonic() - started < patience(10)


def test_a_file_of_lexicons_and_the_command(tmp_path: Path, embedded_shards: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("deny: {regex: ['\\w+n''t', '(\\w+)*x'], words: [but]}\nother: {regex: [3]}\n")
    with pytest.raises(UserError) as caught:
        read_lexicons(path)
    assert [(one.field, one.value) for one in caught.value.faults] == [
        ("own.yaml: deny.regex", "(\\w+)*x"), ("own.yaml: other.regex", 3),
    ]  # fmt: skip
    path.write_text("deny: {regex: ['\\w+n''t'], words: [but]}\n")
    shown = CliRunner().invoke(
        make_app(),
        ["lexicon", "show", "deny", "--tokenizer", str(embedded_shards / "tokenizer"), "--mode", "words",
         "--lexicons", str(path), "--text", "It isn't so, but"],
    )  # fmt: skip
    assert shown.exit_code == 0 and "but, regex \\w+n't" in shown.output and "[but]" in shown.output
    assert "[isn]" in shown.output or "[is]" in shown.output or "[isn't]" in shown.output
    own = read_lexicons(path)
    with pytest.raises(UserError, match=r"'deny' has regex, which mode pieces does not match"):
        own["deny"].pattern(load_tokenizer(embedded_shards / "tokenizer"), "pieces")
    plain = get_lexicon("deny", own={"deny": read_lexicons(_without(tmp_path))["deny"]})
    assert own["deny"].content("words") != plain.content("words")
    assert own["deny"].content("pieces") == plain.content("pieces")


def _without(folder: Path) -> Path:
    (folder / "plain.yaml").write_text("deny: [but]\n")
    return folder / "plain.yaml"


def test_a_copy_matches_as_the_original_and_what_is_unused_is_freed(tokenizer) -> None:
    """A graph knows expressions by a number, which another process gives to others."""
    first = WordSet.build("own", [], tokenizer, expressions=["isn't"])
    ids = torch.tensor([tokenizer(TEXT.replace("’", "'"), add_special_tokens=False)["input_ids"]])
    want = first.target(ids).marked_BT
    kept, stored = weakref.ref(first._expressions), pickle.dumps(first)
    del first
    gc.collect()
    assert kept() is None
    other = WordSet.build("own", [], tokenizer, expressions=["sun"])
    copy = pickle.loads(stored)
    assert want.any() and torch.equal(copy.target(ids).marked_BT, want)
    assert not torch.equal(other.target(ids).marked_BT, want)
    assert other.target(ids[:, :0]).marked_BT.shape == (1, 0)


@pytest.mark.slow
def test_a_compiled_graph_has_the_same_marks(tokenizer, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("deny: {regex: ['\\w+n''t']}\n")
    pattern = make_pattern("deny", tokenizer, "words", read_lexicons(tmp_path / "own.yaml"))
    ids = torch.tensor([tokenizer(TEXT, add_special_tokens=False)["input_ids"]])
    pattern.prepare(ids.device)  # type: ignore[attr-defined]
    compiled = torch.compile(
        lambda x: pattern.target(x).marked_BT.float() * 2, fullgraph=True, backend="eager"
    )
    want = pattern.target(ids).marked_BT.float() * 2
    assert want.any() and torch.equal(compiled(ids), want)
