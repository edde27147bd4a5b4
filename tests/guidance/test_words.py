"""Whole words on vocabularies of every kind: equal to a search in the decoded text, token by token."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from gaguide.guidance import get_lexicon
from gaguide.guidance.words import WordSet
from tests.support.gpt2_tokenizer import MERGES, gpt2_tokenizer_folder

_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORDS = ("not", "but", "on the other hand", "don't", ".", "?!", "no_one")


def corpus() -> list[str]:
    import pydoc_data.topics

    pages = list(pydoc_data.topics.topics.values())
    joined = ["-".join(page.split()) for page in pages[:20]] + ["[" + "/".join(p.split()) for p in pages[:20]]
    return [*pages, *joined, "naïve é 鸡 中文 😀 — “not” don’t\tbut\tnot" * 20]


def build(kind: str, folder: Path):
    if kind == "gpt2":
        return AutoTokenizer.from_pretrained(gpt2_tokenizer_folder(folder, MERGES))
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=kind == "byte-fallback"))
    special = ["<unk>", "</s>"]
    if kind == "cl100k":
        split = pre_tokenizers.Split(Regex(_CL100K), "isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        alphabet = ["Ġ"]  # also a letter
        if kind == "byte-fallback":
            special += [f"<0x{byte:02X}>" for byte in range(256)]
            tokenizer.decoder = decoders.Sequence(
                [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
            )
    limit = {"limit_alphabet": 60} if kind == "byte-fallback" else {}
    trainer = trainers.BpeTrainer(vocab_size=1800, special_tokens=special, initial_alphabet=alphabet, **limit)
    tokenizer.train_from_iterator(corpus(), trainer)
    # Bytes are ordinary entries of such a vocabulary; only the trainer takes them for special ones.
    tree = json.loads(tokenizer.to_str())
    tree["added_tokens"] = [t for t in tree["added_tokens"] if not t["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(tree))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="module", params=["gpt2", "cl100k", "sentencepiece", "byte-fallback"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    return build(request.param, tmp_path_factory.mktemp("tokenizer") / "t")


@pytest.fixture(scope="module")
def pattern(tokenizer) -> WordSet:
    return WordSet.build("words", WORDS, tokenizer)


def reference(tokenizer, ids: list[int], words: tuple[str, ...]) -> list[bool]:
    """Slow: decode ids to bytes one by one, search the text, and mark the tokens that overlap a match."""
    special, vocabulary = set(tokenizer.all_special_ids), tokenizer.convert_ids_to_tokens(ids)
    byte_of = {c: b for b, c in zip(*_bytes_to_unicode())}
    # An alphabet of printable bytes: what a pre-tokenizer of this type writes.
    byte_level = "ByteLevel" in repr(tokenizer.backend_tokenizer.pre_tokenizer)
    raws = []
    for token, piece in zip(ids, vocabulary):
        if token in special:
            raws.append(b"\x00")  # a boundary
        elif byte_level:
            raws.append(bytes(byte_of[c] for c in piece))
        elif found := re.fullmatch("<0x(..)>", piece):
            raws.append(bytes([int(found[1], 16)]))
        else:
            raws.append(piece.replace("▁", " ").encode())
    text = b"".join(raws).decode("utf-8", "surrogateescape")
    ends = [0]
    for character in text:
        ends.append(ends[-1] + len(character.encode("utf-8", "surrogateescape")))
    spans, at = [], 0
    for raw in raws:
        spans.append((at, at + len(raw), not raw.strip(b" \t\n\r\x0b\x0c")))
        at += len(raw)
    forms = {f for w in words for f in (w, w[:1].upper() + w[1:], w.upper())}
    forms |= {form.replace("'", "’") for form in forms}
    marked = [False] * len(ids)
    for form in forms:
        before = r"(?<!\w)" if re.match(r"\w", form) else ""
        after = r"(?!\w)" if re.match(r"\w", form[-1]) else ""
        middle = "[ \t\n\r\x0b\x0c]+".join(map(re.escape, form.split(" ")))
        for match in re.finditer(f"(?={before}({middle}){after})", text):
            first, last = ends[match.start(1)], ends[match.end(1)]
            for index, (start, end, white) in enumerate(spans):
                marked[index] |= end > first and start < last and not white
    return marked


def _bytes_to_unicode() -> tuple[list[int], list[str]]:
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in kept]
    return kept + others, [*map(chr, kept), *(chr(256 + n) for n in range(len(others)))]


_PARTS = st.sampled_from(
    ["not", "Not", "NOT", "but", "on the other hand", "on the", "other hand", "on", "hand", "don't", "don’t",
     "knot", "notes", "no_one", "no", "t", "é", "中", "鸡", "😀", "—", "-", "/", "[", "]", "(", '"', "“", "”",
     "'", "’", ".", "?", "!", "...", "_", "7", " ", "  ", "\n", "\t", "\n\n", "\u00a0", "Ġ", "x", ","]
)  # fmt: skip


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_PARTS, min_size=1, max_size=14).map("".join))
@example("it is -not /but [not —not\tbut “not” not")
@example("on the\nother hand, on  the other\n hand; on the other handle")
@example("énot noté 鸡not not鸡 not😀 😀not don’t?!... 3.14")
def test_words_equal_a_search_in_the_text(tokenizer, pattern: WordSet, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    got = pattern.target(torch.tensor([ids], dtype=torch.long)).marked_BT[0].tolist() if ids else []
    want = reference(tokenizer, ids, WORDS)
    pieces = tokenizer.convert_ids_to_tokens(ids)
    assert got == want, [(p, g, w) for p, g, w in zip(pieces, got, want)]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 1799), min_size=1, max_size=30))
@example([931, 126, 139, 120])  # cl100k: a word, the start of a character that does not follow, a letter
def test_words_in_any_sequence_of_tokens(tokenizer, pattern: WordSet, ids: list[int]) -> None:
    """Also cut characters and special tokens, as at the edges of blocks."""
    special = set(tokenizer.all_special_ids)
    if any(token in special for token in ids):
        ids = [token for token in ids if token not in special] or [5]
    got = pattern.target(torch.tensor([ids])).marked_BT[0].tolist()
    assert got == reference(tokenizer, ids, WORDS)


def test_a_batch_and_ids_beyond_the_vocabulary(tokenizer, pattern: WordSet) -> None:
    rows = [tokenizer(text)["input_ids"][:6] for text in ("it is not, but so it is", "a b c d e f g h i j k")]
    size = min(map(len, rows))
    ids = torch.tensor([row[:size] for row in rows])
    together = pattern.target(ids).marked_BT
    assert torch.equal(together[0], pattern.target(ids[:1]).marked_BT[0])
    beyond = torch.full((1, 4), len(tokenizer) + 100)
    assert not pattern.target(beyond).marked_BT.any()


@pytest.mark.parametrize("name", ["contrast", "sentence-ends", "punctuation"])
def test_recall_on_a_corpus(tokenizer, name: str) -> None:
    """Every occurrence is found, also where the tokenizer joins marks to words and lines."""
    ids = tokenizer("\n".join(corpus())[:12_000], add_special_tokens=False)["input_ids"]
    words = get_lexicon(name).words
    got = WordSet.build(name, words, tokenizer).target(torch.tensor([ids])).marked_BT[0].tolist()
    want = reference(tokenizer, ids, words)
    assert got == want and sum(want) > 10


def test_pieces_of_the_paper_miss_words_that_are_one_token(tmp_path: Path) -> None:
    """As docs/guidance.md says."""
    tokenizer = AutoTokenizer.from_pretrained(gpt2_tokenizer_folder(tmp_path / "t"))
    for name, words in (("contrast", ("contrast", "contrary")), ("emphasis", ("particularly",))):
        ids = torch.tensor([tokenizer(f" {word}")["input_ids"] for word in words])
        assert ids.shape == (len(words), 1)
        lexicon = get_lexicon(name)
        assert not lexicon.pattern(tokenizer, "pieces").target(ids).marked_BT.any()
        found = lexicon.pattern(tokenizer, "words").target(ids).marked_BT[:, 0].tolist()
        assert found == [word in lexicon.words for word in words]
