"""Profiles of heads: planted behaviour, estimates against finite differences, rules, and the command."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from gaguide.ablate.plan_source import find_plan
from gaguide.ablate.subjects import Subject
from gaguide.ablate.text import measure_text
from gaguide.cli.heads import ProfileOptions
from gaguide.cli.heads import profile as command
from gaguide.data import BuildRequest, build_shards, load_tokenizer
from gaguide.data.build.python_reference import embedded_documents
from gaguide.errors import UserError
from gaguide.files import read_record
from gaguide.guidance import TokenSet
from gaguide.guidance.cues import BANDS, NEAR
from gaguide.heads.attribution import attribute
from gaguide.heads.profile import ProfileSettings
from gaguide.heads.profile import profile as profile_heads
from gaguide.heads.records import FILE, HeadProfile, ProfileRecord
from gaguide.heads.rules import choose, guidance_of
from gaguide.interventions import intervene, mean_outputs, record_outputs
from gaguide.study.file import load_study
from gaguide.study.grid import make_grid
from tests.support.models import CONFIGS, HEADS, LAYERS, random_ids, tiny_model

WORDS = TokenSet("words", frozenset({5, 9, 17, 33}))


def batches() -> list[dict[str, torch.Tensor]]:
    return [{"input_ids": random_ids(2, 40, seed)} for seed in range(2)]


@pytest.mark.parametrize("kind", CONFIGS)
def test_an_estimate_is_the_derivative_towards_the_mean(kind: str) -> None:
    model, given = tiny_model(kind), batches()
    means = mean_outputs(model, given)
    found = attribute(model, given, WORDS, means)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert len(found) == LAYERS * HEADS and found[0, 0].shape == (4, 2)
    step = 1e-3
    for key in ((0, 1), (1, 3), (2, 0)):
        with record_outputs(model) as outputs:
            model(**given[0], use_cache=False)
        z_BTD = outputs.head(*key)
        # A small step towards the mean, by an intervention that mixes both.
        mixed = _Mix(key, (1 - step) * z_BTD + step * means[key].float())
        before, after = _loss(model, given[0]), None
        with intervene(model, mixed):
            after = _loss(model, given[0])
        derivative = (after - before) / step
        np.testing.assert_allclose(found[key][:2, 1], derivative, rtol=0.08, atol=0.15)


class _Mix:
    def __init__(self, key, out_BTD) -> None:
        self.heads, self.out = (key,), out_BTD

    def change(self, call, inputs, heads, out_BTHD):
        return self.out[:, :, None]


def _loss(model, batch) -> np.ndarray:
    with torch.no_grad():
        logits = model(**batch, use_cache=False).logits[:, :-1].double()
    loss = torch.nn.functional.cross_entropy(logits.mT, batch["input_ids"][:, 1:], reduction="none")
    return loss.sum(1).numpy()


def test_estimates_rank_heads_as_their_exact_removal_does() -> None:
    model, given = tiny_model("gpt2"), batches()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.6)
    found = attribute(model, given, WORDS, mean_outputs(model, given))
    subjects = [Subject(layer, head, "other", WORDS) for layer in range(LAYERS) for head in range(HEADS)]
    exact = measure_text(model, subjects, given, ["mean"])
    near = [BANDS.index(name) for name in NEAR]
    estimates = [found[one.key].sum(0) for one in subjects]
    changes = [exact.change[one.key, "mean"] for one in subjects]
    for column, wanted in ((0, [c[:, near].sum() for c in changes]), (1, [c.sum() for c in changes])):
        assert np.corrcoef([e[column] for e in estimates], wanted)[0, 1] > 0.8


def head(layer: int, index: int, near: float | None, loss: float | None, estimate: float) -> HeadProfile:
    return HeadProfile(
        layer, index, 0.1, None, None, 0.6, 0.1, 0.1, 0.0, None, "first-token sink", estimate, estimate,
        near, None, None, loss, None, None,
    )  # fmt: skip


def test_rules_rank_exact_changes_before_estimates() -> None:
    heads = [
        head(0, 0, 0.03, 0.02, 0.01),
        head(0, 1, None, None, 0.5),  # an estimate, however large, comes after what was removed
        head(0, 2, 0.05, 0.03, 0.0),
        head(0, 3, 0.0, 0.0001, 0.0),
        head(1, 0, -0.04, 0.0, 0.0),  # not unused: the loss near cues falls without it
    ]
    most, least, chance = choose(heads, 2, seed=0)
    assert most.heads == ((0, 0), (0, 2)) and least.heads == ((0, 0), (0, 3))
    three = choose(heads, 3, seed=0)[0]
    assert three.heads == ((0, 0), (0, 1), (0, 2)) and "but not" not in three.rule  # before heads that harm
    assert "but not without 2 of these" in choose(heads, 5, seed=0)[0].rule
    assert choose(heads, 2, seed=0)[2] == chance and len(chance.heads) == 2
    assert len({choose(heads, 2, seed=seed)[2].heads for seed in range(8)}) > 1
    assert "60% of its attention is on the first token" in heads[0].displaces
    assert "(estimated)" in heads[1].displaces
    assert "changes by +0.0000" in head(0, 0, 0.0, -1e-6, 0.0).displaces


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, embedded_shards: Path) -> Path:
    tokenizer = load_tokenizer(embedded_shards / "tokenizer")
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_layer=2, n_embd=32, n_head=4, n_positions=64,
                   bos_token_id=0, eos_token_id=0)
    )  # fmt: skip
    place = tmp_path_factory.mktemp("model")
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def test_the_command_writes_a_plan_that_studies_and_ablations_read(
    folder: Path, embedded_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "profile"
    words = {"model": str(folder), "lexicon": "negation", "output": out}
    options = {"text": str(embedded_shards), "blocks": 12, "top": 2, "choose": 2}
    command(**words, **vars(ProfileOptions(**options)))
    record = read_record(out / FILE, ProfileRecord, "a profile", "")
    assert len(record.heads) == 8 and record.near_tokens > 0
    assert 2 <= sum(one.near is not None for one in record.heads) <= 8
    plans = yaml.safe_load((out / "plan.yaml").read_text("utf-8"))
    assert plans.pop("profiled") == {
        "model": str(folder), "text": record.settings["text_fingerprint"], **record.identity
    }  # fmt: skip
    assert list(plans) == ["chosen-most-used", "chosen-least-used", "chosen-random"]
    source = find_plan([], f"{out / 'plan.yaml'}:chosen-random")
    assert {
        (layer, h) for entry in source.section.plan for layer in entry.layers for h in entry.heads
    } == set(record.chosen[2].heads)
    with pytest.raises(UserError, match="has no such plan"):
        find_plan([], f"{out / 'plan.yaml'}:chosen-rando")
    study = tmp_path / "study.yaml"
    study.write_text(yaml.safe_dump({
        "name": "choice", "output": str(tmp_path / "out"), "sizes": [{"name": "here", "model": str(folder)}],
        "experiments": ["finetuned", "1-negation", *plans], "chosen": str(out / "plan.yaml"),
        "data": {"shards": str(embedded_shards), "block_length": 64},
        "train": {"global_batch": 4, "steps": 2}, "guidance": {"weight": 5}, "tasks": ["demo"],
    }))  # fmt: skip
    grid = make_grid(load_study(study, {}))
    cells = {cell.experiment: cell for cell in grid.cells}
    (double,) = grid.notes
    assert double.startswith("the heads of `chosen` were chosen on held-out text of these shards")
    assert make_grid(load_study(study, {"ablation": "null"})).notes == ()
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    elsewhere = {"sizes": json.dumps([{"name": "here", "model": str(other)}])}
    assert make_grid(load_study(study, elsewhere)).notes == (double,), "a copy is the same model"
    weights = {name: of + 1 for name, of in load_file(other / "model.safetensors").items()}
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    notes = [note for note in make_grid(load_study(study, elsewhere)).notes if note != double]
    assert len(notes) == 3
    assert all(f"profile of {folder}" in note and "other model.safetensors" in note for note in notes)
    run = cells["chosen-least-used"].run
    assert run is not None and run.guidance.weight == 5 and run.guidance.mode == "words"
    assert {entry.pattern for entry in run.guidance.plan} == {"negation"}
    page = (out / "report.html").read_text("utf-8")
    assert "chosen-most-used" in page and page.count("<svg") == 2
    with pytest.raises(UserError, match="already has a"):
        command(**words, **vars(ProfileOptions(**options)))


def test_faults_before_the_weights(folder: Path, embedded_shards: Path, tmp_path: Path) -> None:
    options = ProfileOptions(text=str(embedded_shards), blocks=1, top=0)
    with pytest.raises(UserError, match=r"(?s)--blocks.*--top"):
        command(model=str(folder), lexicon="negation", output=tmp_path / "a", **vars(options))
    options = ProfileOptions(text=str(embedded_shards), blocks=4)
    with pytest.raises(UserError, match="did you mean 'negation'"):
        command(model=str(folder), lexicon="negatio", output=tmp_path / "a", **vars(options))


def test_a_text_without_the_words_is_found_before_the_weights(
    folder: Path, embedded_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gaguide.heads.profile.load_model", None)
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"rare": ["zzzxq"]}))
    options = ProfileOptions(text=str(embedded_shards), blocks=4, lexicons=tmp_path / "own.yaml")
    with pytest.raises(UserError, match="marks no token of this text"):
        command(model=str(folder), lexicon="rare", output=tmp_path / "a", **vars(options))
    options = ProfileOptions(text=str(embedded_shards), blocks=4, block_length=2, choose=0)
    with pytest.raises(UserError, match=r"(?s)--block-length = 2: must be at least 4.*--choose = 0"):
        command(model=str(folder), lexicon="negation", output=tmp_path / "a", **vars(options))


def test_a_model_that_is_not_finite_has_no_profile(
    folder: Path, embedded_shards: Path, tmp_path: Path
) -> None:
    model = GPT2LMHeadModel.from_pretrained(folder)
    model.lm_head.weight.data[5] = torch.nan
    model.save_pretrained(tmp_path / "model")
    load_tokenizer(embedded_shards / "tokenizer").save_pretrained(tmp_path / "model")
    options = ProfileOptions(text=str(embedded_shards), blocks=40)
    with pytest.raises(UserError, match="not finite"):
        command(model=str(tmp_path / "model"), lexicon="negation", output=tmp_path / "a", **vars(options))
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_marks_of_the_text_are_profiled_as_a_lexicon_of_the_same_tokens(
    folder: Path, embedded_shards: Path, tmp_path: Path
) -> None:
    texts = [text[at - 200 : at + 200] for text in embedded_documents() if (at := text.find(" not ")) > 200][
        :40
    ]
    spans = [[list(found.span()) for found in re.finditer(r"(?<!\w)not(?!\w)", text)] for text in texts]
    source = tmp_path / "rows.jsonl"
    rows = [{"text": text, "word": span} for text, span in zip(texts, spans, strict=True)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    tokenizer = str(embedded_shards / "tokenizer")
    build_shards(
        BuildRequest((str(source),), tmp_path / "o", tokenizer, spans=("word",), validation_fraction=0.5)
    )
    (tmp_path / "own.yaml").write_text("word: {words: ['not'], except: ['NOT', 'Not']}\n")
    found = []
    for pattern, lexicons in (("spans:word", None), ("word", tmp_path / "own.yaml")):
        settings = ProfileSettings(
            pattern, lexicons=lexicons, text=str(tmp_path / "o"), blocks=6, block_length=64, top=2, heads=2
        )
        found.append(profile_heads(str(folder), settings, torch.device("cpu")))
    marks, lexicon = found
    assert marks.near_tokens == lexicon.near_tokens > 0
    assert [one.mass for one in marks.heads] == [one.mass for one in lexicon.heads]
    assert marks.heads[0].near_estimate == pytest.approx(lexicon.heads[0].near_estimate, abs=1e-9)
    assert {entry["pattern"] for entry in guidance_of(marks, marks.chosen[0])["plan"]} == {"spans:word"}
    with pytest.raises(UserError, match="is not a mark of the data's tokens"):
        profile_heads(
            str(folder), replace(settings, pattern="spans:scope", lexicons=None), torch.device("cpu")
        )
