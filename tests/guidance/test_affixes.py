"""Affixes and their exceptions, the added negations, and connectives from a DiMLex file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer
from typer.testing import CliRunner

from gaguide.cli import make_app
from gaguide.errors import UserError
from gaguide.guidance import get_lexicon, read_lexicons, shipped_lexicons
from gaguide.guidance.words import WordSet
from tests.support.gpt2_tokenizer import MERGES, gpt2_tokenizer_folder

TEXT = (
    "It is unhappy, un-done and UNKIND, but under the sun the uncle isn’t gone; don't be careless or less. "
    "He disagreed until they undid it. Run, nun! Unless punished, wordless n't."
)


@pytest.fixture(scope="module", params=["gpt2", "embedded"])
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, embedded_shards: Path
):
    if request.param == "gpt2":
        return AutoTokenizer.from_pretrained(
            gpt2_tokenizer_folder(tmp_path_factory.mktemp("g") / "tokenizer", MERGES)
        )
    return AutoTokenizer.from_pretrained(embedded_shards / "tokenizer")


def marked(pattern: WordSet, tokenizer, text: str) -> list[bool]:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return pattern.target(torch.tensor([ids])).marked_BT[0].tolist()


def wanted(expression: str, tokenizer, text: str, but: str | None = None) -> list[bool]:
    """Whether each token overlaps a match of `expression` and none of `but`."""
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]

    def overlaps(found: str | None) -> list[bool]:
        spans = [] if found is None else [match.span() for match in re.finditer(found, text)]
        return [any(start < end_ and begin < end for begin, end_ in spans) for start, end in offsets]

    return [hit and not miss for hit, miss in zip(overlaps(expression), overlaps(but), strict=True)]


CASES = [
    (["un-"], [], r"\b(un|Un|UN)", None),
    (["-n't"], [], r"(?<=\w)(n|N)['’](t|T)\b", None),
    (["-less"], [], r"(?<=\w)less\b", None),
    (["un-", "dis-"], ["under-", "uncle", "unless", "until"], r"\b(un|Un|UN|dis|Dis|DIS)",
     r"\b(under|Under|uncle\b|Uncle\b|unless\b|Unless\b|until\b)"),
]  # fmt: skip


@pytest.mark.parametrize("affixes,exceptions,expression,but", CASES)
def test_affixes_equal_a_search_in_the_text(tokenizer, affixes, exceptions, expression, but) -> None:
    pattern = WordSet.build("affixes", (), tokenizer, affixes, exceptions)
    want = wanted(expression, tokenizer, TEXT, but)
    assert marked(pattern, tokenizer, TEXT) == want and any(want) and not all(want)
    assert pattern.words == (*affixes, *(f"except {one}" for one in exceptions))


def test_affixes_and_words_are_one_set(tokenizer) -> None:
    both = WordSet.build("both", ["not"], tokenizer, ["un-"])
    text = "This is not undone, nor is a knot."
    either = [
        a or b
        for a, b in zip(wanted(r"\bnot\b", tokenizer, text), wanted(r"\bun", tokenizer, text), strict=True)
    ]
    assert marked(both, tokenizer, text) == either


def test_shipped_negations(tokenizer) -> None:
    negation = get_lexicon("negation").pattern(tokenizer, "words")
    for word in ("ain't", "mustn’t", "needn't", "shan't", "Nope", "rarely", "SELDOM", "no one"):
        assert any(marked(negation, tokenizer, f"Yes {word} yes")), word
    inside = get_lexicon("affixal-negation").pattern(tokenizer, "words")
    for word in ("unhappy", "isn't", "careless", "disagree"):
        assert any(marked(inside, tokenizer, f"It {word} x")), word
    for word in ("understand", "display", "none", "regardless", "less"):
        assert not any(marked(inside, tokenizer, f"It {word} x")), word
    control = shipped_lexicons()["pseudo-negation"]
    negations = {word for word in shipped_lexicons()["negation"].words}
    for phrase in control.words:
        assert set(re.split(r"[ -]", phrase)) & negations or phrase in ("not unlike",), phrase
        assert phrase not in negations


def test_a_users_affixes_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text('mine: {affixes: ["un-", "-less"], except: ["under-"], words: [sans]}\n')
    (mine,) = read_lexicons(file).values()
    assert (mine.words, mine.affixes, mine.exceptions) == (("sans",), ("un-", "-less"), ("under-",))
    file.write_text("mine: {affixes: [un]}\nother: {except: [a]}\n")
    with pytest.raises(
        UserError, match=r"(?s)must have a hyphen at one end.*must be a list of words, or have"
    ):
        read_lexicons(file)


DIMLEX = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE dimlex SYSTEM "dimlex.dtd">
<dimlex>
  <entry id="c1" word="but"><orths><orth type="cont" canonical="1"><part>but</part></orth></orths>
    <syn><sem><pdtb3_relation sense="COMPARISON:Contrast"/></sem>
         <sem><pdtb3_relation sense="comparison:concession:arg2-as-denier"/></sem></syn></entry>
  <entry id="c2" word="either or"><orths><orth type="discont"><part type="single">either</part>
    <part type="single">or</part></orth></orths>
    <syn><sem><pdtb3_relation sense="Expansion:Disjunction"/></sem></syn></entry>
  <entry id="c3" word="as a result"><orths><orth><part type="phrasal">as a
    result</part></orth><orth><part type="phrasal">as result</part></orth></orths>
    <syn><sem><pdtb3_relation sense="contingency:cause:result"/></sem></syn></entry>
  <entry id="c4" word="hm"><orths><orth><part>hm</part></orth></orths></entry>
</dimlex>
"""


def test_connectives_are_imported_by_sense(tmp_path: Path) -> None:
    source, output = tmp_path / "dimlex.xml", tmp_path / "connectives.yaml"
    source.write_text(DIMLEX)
    done = CliRunner().invoke(make_app(), ["lexicon", "import", str(source), "--output", str(output)])
    assert done.exit_code == 0, done.output
    assert "1 discontinuous spellings are left out" in done.output
    assert "1 of 4 entries have no PDTB sense" in done.output
    found = read_lexicons(output)
    assert {name: one.words for name, one in found.items()} == {
        "connectives-comparison": ("but",), "connectives-contingency": ("as a result", "as result"),
    }  # fmt: skip
    deeper = tmp_path / "deeper.yaml"
    CliRunner().invoke(
        make_app(), ["lexicon", "import", str(source), "--output", str(deeper), "--level", "2"]
    )
    assert list(read_lexicons(deeper)) == [
        "connectives-comparison-concession", "connectives-comparison-contrast",
        "connectives-contingency-cause",
    ]  # fmt: skip
    again = CliRunner().invoke(make_app(), ["lexicon", "import", str(source), "--output", str(output)])
    assert isinstance(again.exception, UserError) and "already exists" in str(again.exception)
    source.write_text("<dimlex></dimlex>")
    other = ["lexicon", "import", str(source), "--output", str(tmp_path / "x.yaml")]
    assert "has no entry of DiMLex" in str(CliRunner().invoke(make_app(), other).exception)
