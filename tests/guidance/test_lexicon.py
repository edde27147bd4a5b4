"""Lexicons in modes pieces and words, on GPT-2's real vocabulary and on other kinds of tokenizers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers.decoders import Metaspace
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from gaguide.config.experiments import EXPERIMENTS
from gaguide.errors import UserError
from gaguide.guidance import GuidancePlan, Lexicon, get_lexicon, make_pattern, read_lexicons, shipped_lexicons
from gaguide.guidance.patterns import FirstToken, FixedOffset
from gaguide.guidance.words import WordSet
from tests.support.gpt2_tokenizer import MERGES, gpt2_tokenizer_folder

TEXT = (
    'It is not so, but "not" knot cannot. NOT! Continue the contrast; Nonetheless, none. On the other hand\n'
    "not all (but few) don’t; don't unlike_x not7 “Not” on the other handle, on the other hand."
)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory):
    return AutoTokenizer.from_pretrained(gpt2_tokenizer_folder(tmp_path_factory.mktemp("gpt2") / "tokenizer"))


@pytest.fixture(scope="module")
def small_gpt2(tmp_path_factory: pytest.TempPathFactory):
    folder = gpt2_tokenizer_folder(tmp_path_factory.mktemp("small") / "tokenizer", MERGES)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def embedded(embedded_shards: Path):
    return AutoTokenizer.from_pretrained(embedded_shards / "tokenizer")


@pytest.fixture(scope="module")
def sentencepiece_like():
    """BPE over ▁-marked words, as Llama's: no byte-level table, no GPT-2 word splitting."""
    import pydoc_data.topics

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=1500, special_tokens=["<unk>", "</s>"])
    tokenizer.train_from_iterator([TEXT, *pydoc_data.topics.topics.values()], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


@pytest.fixture(params=["small_gpt2", "embedded", "sentencepiece_like"])
def tokenizer(request: pytest.FixtureRequest):
    return request.getfixturevalue(request.param)


def marked_by_regex(text: str, words: tuple[str, ...], offsets: list[tuple[int, int]]) -> list[bool]:
    """The reference: find words in the text, mark tokens that overlap them."""
    forms = {form.replace("'", "’") for w in words for form in (w, w[:1].upper() + w[1:], w.upper())}
    forms |= {form for w in words for form in (w, w[:1].upper() + w[1:], w.upper())}
    marked = [False] * len(offsets)
    for form in forms:
        before = r"(?<!\w)" if re.match(r"\w", form) else ""
        after = r"(?!\w)" if re.match(r"\w", form[-1]) else ""
        # A space in a phrase is any run of white space.
        phrase = r"\s+".join(map(re.escape, form.split(" ")))
        for match in re.finditer(before + phrase + after, text):
            for at, (start, end) in enumerate(offsets):
                marked[at] |= end > match.start() and start < match.end() and text[start:end].strip() != ""
    return marked


def compare_with_regex(tokenizer, words: tuple[str, ...], text: str) -> int:
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    pattern = WordSet.build("x", words, tokenizer)
    got = pattern.target(torch.tensor([encoded["input_ids"]])).marked_BT[0].tolist()
    want = marked_by_regex(text, words, encoded["offset_mapping"])
    pieces = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    wrong = [(at, pieces[max(0, at - 2) : at + 3]) for at in range(len(got)) if got[at] != want[at]]
    assert not wrong, wrong[:5]
    return sum(got)


def test_words_equal_a_regex_over_the_text(tokenizer) -> None:
    for words in (("not", "but", "contrast"), ("on the other hand", "don't"), get_lexicon("contrast").words):
        assert compare_with_regex(tokenizer, words, TEXT) > 0


@pytest.mark.parametrize("name", ["contrast", "conditionals", "causals", "quantifiers", "temporal"])
def test_words_equal_a_regex_over_a_corpus(small_gpt2, embedded, name: str) -> None:
    """Pages of the language reference, on two byte-level vocabularies."""
    import pydoc_data.topics

    text = "\n".join(sorted(pydoc_data.topics.topics.values()))[:20_000]
    for tokenizer in (small_gpt2, embedded):
        assert compare_with_regex(tokenizer, get_lexicon(name).words, text) > 3


def test_mode_pieces_matches_as_the_paper_does(gpt2) -> None:
    ids = get_lexicon("contrast").piece_ids(gpt2)
    pieces = {piece.lstrip("Ġ") for piece in gpt2.convert_ids_to_tokens(list(ids))}
    assert pieces == set(get_lexicon("contrast").pieces)
    assert {"not", "Ġnot", "Cont", "ĠCont", "rast", "versely"} <= set(gpt2.convert_ids_to_tokens(list(ids)))


def test_cont_matches_inside_continue_in_mode_pieces_only(gpt2) -> None:
    ids = torch.tensor([gpt2(" ContrastContinue Controversial")["input_ids"]])
    pieces = get_lexicon("contrast").pattern(gpt2, "pieces").target(ids).marked_BT
    words = get_lexicon("contrast").pattern(gpt2, "words").target(ids).marked_BT
    assert pieces.any() and not words.any()


def test_the_papers_lexicons_are_verbatim() -> None:
    """The numbers of entries, and the entries themselves where the text of the paper is available."""
    sizes = {name: len(get_lexicon(name).pieces) for name in ("contrast", "order", "addition", "emphasis")}
    assert sizes == {"contrast": 27, "order": 20, "addition": 13, "emphasis": 28}
    paper = Path(__file__).parents[3] / "shared" / "paper.txt"
    if not paper.is_file():
        pytest.skip("the text of the paper is not available")
    for name in sizes:
        printed = re.search(rf"{name.upper()} TOKENS = \[(.*?)\]", paper.read_text("utf-8"))
        assert printed is not None
        assert tuple(re.findall(r"‘(.*?)’", printed[1])) == get_lexicon(name).pieces


def test_experiments_put_the_papers_lexicons_on_the_papers_heads(gpt2) -> None:
    assert set(EXPERIMENTS) == {"finetuned", "1-negation", "3-negation", "4-transition"}
    heads = GuidancePlan.from_experiment("4-transition", gpt2).resolve(12, 12)
    assert [heads[7, j].pattern.name for j in range(4)] == ["order", "contrast", "addition", "emphasis"]
    assert len(heads) == 48
    three = GuidancePlan.from_experiment("3-negation", gpt2).resolve(12, 12)
    assert {(head, guided.pattern.name) for (_, head), guided in three.items()} == {
        (0, "contrast"),
        (1, "contrast"),
        (2, "contrast"),
    }
    assert GuidancePlan.from_experiment("finetuned", gpt2).is_empty


@pytest.mark.slow
def test_every_shipped_lexicon_matches_something_in_both_modes(gpt2) -> None:
    assert len(shipped_lexicons()) >= 12
    for name, lexicon in shipped_lexicons().items():
        sentence = f"Well, {lexicon.words[0] if lexicon.words else 'undone'} it is."
        ids = torch.tensor([gpt2(sentence)["input_ids"]])
        assert lexicon.pattern(gpt2, "words").target(ids).marked_BT.any(), name
        if name in ("pseudo-negation", "affixal-negation"):  # phrases and affixes are not single pieces
            with pytest.raises(UserError, match="use mode words"):
                lexicon.piece_ids(gpt2)
        else:
            assert lexicon.piece_ids(gpt2), name


def test_named_patterns(gpt2) -> None:
    assert make_pattern("first-token", gpt2) == FirstToken()
    assert make_pattern("self", gpt2) == FixedOffset(0)
    assert make_pattern("previous-token", gpt2) == FixedOffset(1)
    assert make_pattern("offset-7", gpt2) == FixedOffset(7)
    assert make_pattern("end-of-text", gpt2).target(torch.tensor([[50256, 1]])).marked_BT.tolist() == [
        [True, False]
    ]


@pytest.mark.parametrize("name", ["next-token", "offset-1", "offset--1", "contrasts"])
def test_patterns_a_causal_model_cannot_learn_are_refused(gpt2, name: str) -> None:
    if name == "offset-1":
        assert make_pattern(name, gpt2).name == "previous-token"
        return
    with pytest.raises(UserError, match="did you mean 'contrast'" if name == "contrasts" else "causal model"):
        make_pattern(name, gpt2)


def test_an_entry_point_gives_a_pattern(gpt2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real distribution on the path, found through the standard library."""
    (tmp_path / "my_patterns.py").write_text(
        "from gaguide.guidance import FixedOffset\n"
        "def third(tokenizer):\n    return FixedOffset(3)\n"
        "def broken(tokenizer):\n    return 3\n"
    )
    info = tmp_path / "my_patterns-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-patterns\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[gaguide.patterns]\nthird = my_patterns:third\nbroken = my_patterns:broken\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert make_pattern("third", gpt2) == FixedOffset(3)
    with pytest.raises(UserError, match="must return a pattern"):
        make_pattern("broken", gpt2)


def test_a_users_lexicons(gpt2, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text('greetings: [hello, "good day"]\npieced: {pieces: [hel, lo], words: [hello]}\n')
    own = read_lexicons(path)
    pattern = make_pattern("greetings", gpt2, "words", own)
    ids = torch.tensor([gpt2("Good day and hello there, good days")["input_ids"]])
    assert pattern.target(ids).marked_BT.sum() == 3
    assert own["pieced"].pieces == ("hel", "lo")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [no, yes]", "put it in quotes"),
        ("a: 3", "must be a list"),
        ("[a]", "must be a mapping"),
        ("a: {wordz: [x]}", "must be a list of words"),
        ("a: [", "not valid YAML"),
        ("{}", "at least one lexicon"),
        ("a: [x]\na: [y]", "duplicate key"),
    ],
)
def test_bad_lexicon_files_are_explained(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_lexicons(path)


def test_a_vocabulary_without_the_pieces_is_an_error(sentencepiece_like) -> None:
    lexicon = Lexicon("odd", ("zzzqqq",), ("zzzqqq",))
    with pytest.raises(UserError, match="has no piece of lexicon 'odd'"):
        lexicon.piece_ids(sentencepiece_like)
