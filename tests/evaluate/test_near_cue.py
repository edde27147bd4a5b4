"""Loss by distance after a lexicon's words: equal to training's, and to one read off a model's logits."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from gaguide.data import BlockStore
from gaguide.distributed import World
from gaguide.errors import UserError
from gaguide.evaluate import EvaluateSettings, evaluate
from gaguide.evaluate.results.metric_names import CUE_LOSSES
from gaguide.evaluate.results.outcomes import read_examples
from gaguide.evaluate.results.results import Results
from gaguide.evaluate.schedule.rows import TokenSequence, build_row
from gaguide.evaluate.score.scorer import Scorer, Sharing
from gaguide.evaluate.tasks.read import read_tasks
from gaguide.evaluate.tasks.texts import evaluation_texts
from gaguide.guidance.cues import BANDS, make_cues
from gaguide.guidance.lexicon import get_lexicon
from gaguide.guidance.measurement import measure_guided
from gaguide.train.inputs import model_inputs


@pytest.fixture(scope="module")
def model(embedded_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with the tokenizer of the embedded shards."""
    folder = tmp_path_factory.mktemp("model")
    shutil.copytree(embedded_shards / "tokenizer", folder, dirs_exist_ok=True)
    torch.manual_seed(0)
    vocabulary = BlockStore(embedded_shards, "validation", 8).manifest.vocab_size
    config = GPT2Config(n_layer=2, n_embd=32, n_head=2, n_positions=64, vocab_size=vocabulary)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def _evaluate(model: Path, task: Path, output: Path | None = None, tokens: int | None = None) -> Results:
    return evaluate(model, [str(task)], output, World(), EvaluateSettings(batch_tokens=tokens))


def _task(folder: Path, text: str) -> Path:
    path = folder / "near.yaml"
    path.write_text("name: near\nkind: near_cue\n" + text)
    return path


@pytest.mark.parametrize("isolate", [False, True])
@pytest.mark.parametrize("mode", ["pieces", "words"])
def test_shards_have_the_losses_that_validation_measures(
    isolate: bool, mode: str, embedded_shards: Path, model: Path, tmp_path: Path
) -> None:
    task = _task(
        tmp_path,
        f"lexicon: negation\ncue_mode: {mode}\nshards: {embedded_shards}\nblocks: 24\nblock_length: 48\n"
        f"isolate_documents: {str(isolate).lower()}\n",
    )
    (found,) = _evaluate(model, task, tokens=300).tasks.values()
    store = BlockStore(embedded_shards, "validation", 48)
    chosen = np.arange(24) * len(store) // 24
    inputs = [
        (model_inputs(store, chosen[at : at + 8], isolate, torch.device("cpu")), True) for at in (0, 8, 16)
    ]
    tokenizer = AutoTokenizer.from_pretrained(model)
    cues = make_cues(get_lexicon("negation"), mode, tokenizer)  # type: ignore[arg-type]
    measured = measure_guided(AutoModelForCausalLM.from_pretrained(model), None, inputs, cues)
    assert measured.near_cue is not None
    bands = measured.near_cue["bands"]
    assert found.metrics["loss"].value == pytest.approx(measured.lm_loss, abs=1e-6)
    total = sum(one["loss"] * one["tokens"] for one in bands.values() if one["tokens"])
    assert total / (24 * 47) == pytest.approx(measured.lm_loss, abs=1e-6)
    assert sum(one["tokens"] for one in bands.values()) == 24 * 47
    assert min(one["tokens"] for one in bands.values()) > 0
    if isolate:  # there a block's last token counts as of its last document
        return
    for band, metric in CUE_LOSSES.items():
        assert found.metrics[metric].value == pytest.approx(bands[band]["loss"], abs=1e-6)


def test_cues_of_isolated_documents_do_not_reach_the_next_one(embedded_shards: Path, model: Path) -> None:
    cues = make_cues(get_lexicon("negation"), "words", AutoTokenizer.from_pretrained(model))
    (cue,) = AutoTokenizer.from_pretrained(model)(" not", add_special_tokens=False)["input_ids"][:1]
    ids = [5, cue, 6, 7, 8]
    if cues.bands(ids, [0] * 5)[1] != "on":
        pytest.skip("this tokenizer spells the cue with several tokens")
    assert cues.bands(ids, [0] * 5) == ["rest", "on", "1-5", "1-5", "1-5"]
    assert cues.bands(ids, [0, 0, 0, 1, 1]) == ["rest", "on", "1-5", "rest", "rest"]


def test_texts_have_the_losses_read_off_the_logits(model: Path, tmp_path: Path) -> None:
    texts = ["It is not the value that was bound before the call, and nothing is said of it. " * 2,
             "A list is a sequence of items.", "not"]  # fmt: skip
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "own.yaml").write_text("mine: [not, nothing]\n")
    task = _task(tmp_path, "file: texts.jsonl\nlexicon: mine\nlexicons: own.yaml\n")
    (found,) = _evaluate(model, task, tmp_path / "out").tasks.values()
    tokenizer, network = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    sums = dict.fromkeys(BANDS, (0.0, 0))
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert len(ids) < 64  # one window
        whole = torch.tensor([[tokenizer.bos_token_id or tokenizer.eos_token_id, *ids]])
        logs_TV = network(whole).logits[0].log_softmax(-1)
        since = None  # tokens since the last cue, whose last token counts
        words = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        cues = [found.span() for found in re.finditer(r"\b(not|nothing)\b", text)]
        for at, (start, end) in enumerate(words):
            on = any(start < stop and end > first for first, stop in cues)
            since = 0 if on else None if since is None else since + 1
            band = BANDS[3 if since is None else 0 if on else 1 if since <= 5 else 2 if since <= 20 else 3]
            loss, count = sums[band]
            sums[band] = loss - float(logs_TV[at, ids[at]].detach()), count + 1
    assert found.metrics.keys() == {"loss", *(CUE_LOSSES[band] for band, (_, count) in sums.items() if count)}
    for band, (loss, count) in sums.items():
        if count:
            assert found.metrics[CUE_LOSSES[band]].value == pytest.approx(loss / count, abs=1e-5)
    record = json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]["near"]
    counts = {band: count for band, (_, count) in sums.items() if count}
    assert record["cues"] == {"lexicon": "mine", "mode": "words", "tokens": counts}
    examples = read_examples(tmp_path / "out")["near"]
    for metric, values in examples.outcomes.items():
        mean = np.average(values, weights=examples.weights[metric])
        assert mean == pytest.approx(found.metrics[metric].value, abs=1e-9)


def test_documents_longer_than_the_model_are_scored_once_in_windows(model: Path, tmp_path: Path) -> None:
    text = "This is not a short text, and it goes on without an end. " * 20
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": text}) + "\n")
    (found,) = _evaluate(model, _task(tmp_path, "file: texts.jsonl\nlexicon: negation\n")).tasks.values()
    ids = AutoTokenizer.from_pretrained(model)(text)["input_ids"]
    assert len(ids) > 128 and sum(found.scored[0].target_tokens) == len(ids)


def test_other_cues_are_another_question(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "It is not so."}\n')
    keys = set()
    for lexicon, mode in (("negation", "words"), ("negation", "pieces"), ("contrast", "words")):
        task = _task(tmp_path, f"file: texts.jsonl\nlexicon: {lexicon}\ncue_mode: {mode}\n")
        (data,) = read_tasks([str(task)], None, None, shots=3)
        keys.add(data.examples[0].key("near_cue"))
        assert evaluation_texts([str(task)])[0].continuations == ("It is not so.",)
    assert len(keys) == 3


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("kind: near_cue\n", "lexicon is required"),
        ("kind: near_cue\nlexicon: negaton\n", "unknown lexicon"),
        ("kind: near_cue\nlexicon: negation\nfewshot: {count: 2}\n", "fewshot does not apply"),
        ("kind: sequence_prob\nlexicon: negation\n", "applies to kind near_cue only"),
    ],
)
def test_mistakes_are_named_before_a_model_loads(text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "It is not so."}\n')
    (tmp_path / "t.yaml").write_text("name: t\nfile: texts.jsonl\n" + text)
    with pytest.raises(UserError) as error:
        read_tasks([str(tmp_path / "t.yaml")], None, None)
    assert problem in str(error.value).replace(":", "")


def test_a_row_without_branches_is_computed_as_one_for_every_model(model: Path) -> None:
    ids = tuple(range(5, 45))
    row = build_row([TokenSequence(ids[:end], ids[start + 1 : end + 1], (0, at))
                     for at, (start, end) in enumerate([(0, 9), (9, 20), (20, 39)])])  # fmt: skip
    network = AutoModelForCausalLM.from_pretrained(model).eval()
    calls: list[int] = []
    network.register_forward_pre_hook(lambda *_: calls.append(1))
    alone = Scorer(network, torch.device("cpu"), Sharing.NOTHING).score([row])
    assert len(calls) == 1
    assert alone == pytest.approx(Scorer(network, torch.device("cpu")).score([row]), abs=1e-4)
