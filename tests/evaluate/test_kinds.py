"""Held-out perplexity, numbers and demonstrations, compared with plain forward passes and training's loss."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from gaguide.data import BlockStore, BuildRequest, build_shards
from gaguide.data.build.python_reference import embedded_documents
from gaguide.distributed import World
from gaguide.errors import UserError
from gaguide.evaluate import EvaluateSettings, Results, evaluate
from gaguide.evaluate.results.metric_names import CUE_LOSSES
from gaguide.evaluate.results.numbers import first_number
from gaguide.guidance import shipped_lexicons
from gaguide.guidance.cues import make_cues
from gaguide.guidance.measurement import measure_guided
from gaguide.train.inputs import model_inputs
from tests.support.gpt2_tokenizer import MERGES


def _evaluate(model: Path, task: Path, **settings: object) -> Results:
    return evaluate(model, [str(task)], None, World(), EvaluateSettings(**settings))


@pytest.fixture(scope="module")
def embedded_model(embedded_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with the tokenizer of the embedded shards."""
    folder = tmp_path_factory.mktemp("model")
    shutil.copytree(embedded_shards / "tokenizer", folder, dirs_exist_ok=True)
    torch.manual_seed(0)
    vocabulary = BlockStore(embedded_shards, "validation", 8).manifest.vocab_size
    GPT2LMHeadModel(
        GPT2Config(n_layer=2, n_embd=32, n_head=2, n_positions=64, vocab_size=vocabulary)
    ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("isolate", [False, True])
def test_perplexity_of_shards_equals_the_validation_loss_of_training(
    isolate: bool, embedded_shards: Path, embedded_model: Path, tmp_path: Path
) -> None:
    task = tmp_path / "heldout.yaml"
    task.write_text(
        f"name: heldout\nkind: perplexity\nshards: {embedded_shards}\nblocks: 96\nblock_length: 48\n"
        f"isolate_documents: {str(isolate).lower()}\n"
    )
    (found,) = _evaluate(embedded_model, task, batch_tokens=300).tasks.values()
    store = BlockStore(embedded_shards, "validation", 48)
    chosen = np.arange(96) * len(store) // 96
    if isolate:
        assert store.document_ids(chosen).any()
    inputs = [
        (model_inputs(store, chosen[at : at + 8], isolate, torch.device("cpu")), True)
        for at in range(0, 96, 8)
    ]
    wanted = measure_guided(AutoModelForCausalLM.from_pretrained(embedded_model), None, inputs).lm_loss
    assert found.metrics["loss"].value == pytest.approx(wanted, abs=1e-6)
    assert found.metrics["perplexity"].value == pytest.approx(math.exp(wanted), rel=1e-6)
    assert len(found.scored) == 96 and sum(found.scored[0].target_tokens) == 47


@pytest.mark.parametrize("isolate", [False, True])
def test_perplexity_of_conversations_counts_answers_as_training_does(
    isolate: bool, embedded_shards: Path, embedded_model: Path, tmp_path: Path
) -> None:
    texts = embedded_documents()[:60]
    chats = [
        [{"role": "user", "content": text[:90]}, {"role": "assistant", "content": text[90 : 100 + 2 * at]}]
        for at, text in enumerate(texts)
    ]
    source = tmp_path / "chats.jsonl"
    source.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tokenizer = str(embedded_shards / "tokenizer")
    request = BuildRequest((str(source),), tmp_path / "shards", tokenizer, chat="messages", template=template)
    build_shards(replace(request, validation_fraction=0.5))
    task = tmp_path / "heldout.yaml"
    task.write_text(
        f"name: heldout\nkind: perplexity\nshards: {tmp_path / 'shards'}\nblocks: 24\nblock_length: 48\n"
        f"isolate_documents: {str(isolate).lower()}\n"
    )
    (found,) = _evaluate(embedded_model, task, batch_tokens=300).tasks.values()
    store = BlockStore(tmp_path / "shards", "validation", 48)
    chosen = np.arange(24) * len(store) // 24
    inputs = [
        (model_inputs(store, chosen[at : at + 8], isolate, torch.device("cpu")), True) for at in (0, 8, 16)
    ]
    wanted = measure_guided(AutoModelForCausalLM.from_pretrained(embedded_model), None, inputs).lm_loss
    assert found.metrics["loss"].value == pytest.approx(wanted, abs=1e-6)
    counted = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch, _ in inputs)
    assert sum(sum(one.target_tokens) for one in found.scored) == counted < 0.9 * 24 * 47
    near = tmp_path / "near.yaml"
    text = task.read_text().replace("kind: perplexity", "kind: near_cue\nlexicon: negation")
    near.write_text(text.replace("name: heldout", "name: near"))
    (found,) = _evaluate(embedded_model, near, batch_tokens=300).tasks.values()
    tokenizer = AutoTokenizer.from_pretrained(embedded_model)
    cues = make_cues(shipped_lexicons()["negation"], "words", tokenizer)
    batches = [(batch, True) for batch, _ in inputs]
    model = AutoModelForCausalLM.from_pretrained(embedded_model)
    measured = measure_guided(model, None, batches, cues).near_cue
    assert measured is not None
    for band, numbers in measured["bands"].items():
        if numbers["tokens"]:
            value = found.metrics[CUE_LOSSES[band]].value
            assert value == pytest.approx(numbers["loss"], abs=1e-6)


def test_a_folder_of_shards_is_a_task_and_requires_its_tokenizer(
    embedded_shards: Path, embedded_model: Path, gpt2_folder: Path
) -> None:
    (found,) = _evaluate(embedded_model, embedded_shards, limit=3).tasks.values()
    assert found.data.kind == "perplexity" and len(found.scored) == 3
    with pytest.raises(UserError, match="another tokenizer"):
        _evaluate(gpt2_folder, embedded_shards)


def test_numbers_equal_those_of_greedy_decoding(gpt2_folder: Path, tmp_path: Path) -> None:
    prompts = ["Two and two is", "A dozen eggs are", "The year of the first edition was the year"]
    tokenizer = AutoTokenizer.from_pretrained(gpt2_folder)
    model = AutoModelForCausalLM.from_pretrained(gpt2_folder).eval()
    texts = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        for _ in range(4):
            with torch.inference_mode():
                ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
        texts.append(tokenizer.decode(ids[0, -4:]))
    rows = [{"prompt": prompt, "number": 4} for prompt in prompts]
    (tmp_path / "sums_numeric.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "sums.yaml").write_text(
        "name: sums\nkind: numeric\nfile: sums_numeric.jsonl\nnew_tokens: 4\n"
    )
    (found,) = _evaluate(gpt2_folder, tmp_path / "sums.yaml").tasks.values()
    assert [one.text for one in found.scored] == texts
    assert found.metrics["acc"].value == 0 and found.metrics["answered"].value == sum(
        first_number(text) is not None for text in texts
    ) / len(texts)


def test_a_number_after_the_end_of_the_text_is_not_read(gpt2_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "task_numeric.jsonl").write_text('{"prompt": "Two and two is", "number": 4}\n')
    (before,) = _evaluate(gpt2_folder, tmp_path / "task_numeric.jsonl").tasks.values()
    tokenizer = AutoTokenizer.from_pretrained(gpt2_folder)
    ids = tokenizer(before.scored[0].text).input_ids
    assert len(set(ids)) > 2
    ending = shutil.copytree(gpt2_folder, tmp_path / "ending")
    second = next(at for at, token in enumerate(ids) if token != ids[0])
    settings = json.loads((ending / "generation_config.json").read_text())
    (ending / "generation_config.json").write_text(
        json.dumps(settings | {"eos_token_id": [256 + MERGES, ids[second]]})
    )
    (after,) = _evaluate(ending, tmp_path / "task_numeric.jsonl").tasks.values()
    assert after.scored[0].text == tokenizer.decode(ids[:second])


@pytest.mark.parametrize(
    ("text", "number"),
    [(" 1,234.5 eggs", 1234.5), ("\n\n 7.", 7), (" about -3e2", -300), (" none\n 5", None), ("1,23", 1)],
)
def test_the_first_number_of_the_first_line_is_found(text: str, number: float | None) -> None:
    assert first_number(text) == number


def test_demonstrations_precede_every_prompt_and_are_not_asked(gpt2_folder: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Q{at}: is it?", "classes": [" yes", " no"], "answer_index": at % 2} for at in range(9)
    ]
    (tmp_path / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "quiz.yaml").write_text(
        "name: quiz\nfile: quiz.jsonl\nfewshot: {count: 3, seed: 5, separator: '; '}\n"
    )
    (found,) = _evaluate(gpt2_folder, tmp_path / "quiz.yaml").tasks.values()
    assert len(found.scored) == 6
    (before,) = {one.example.prompts[0].rpartition("; ")[0] for one in found.scored}
    shown = before.split("; ")
    assert len(shown) == 3
    for text in shown:
        at = int(text[1])
        assert text == f"Q{at}: is it? {'no' if at % 2 else 'yes'}"
        assert all(f"Q{at}" not in one.example.prompts[0].rpartition("; ")[2] for one in found.scored)
    (again,) = _evaluate(gpt2_folder, tmp_path / "quiz.yaml", shots=0).tasks.values()
    assert [one.example.prompts[0] for one in again.scored] == [row["prompt"] for row in rows]


def test_demonstrations_from_another_file_keep_every_example(gpt2_folder: Path, tmp_path: Path) -> None:
    row = {"prompt": "Is it?", "classes": [" yes", " no"], "answer_index": 1}
    (tmp_path / "quiz.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "train.jsonl").write_text(2 * (json.dumps(row | {"prompt": "Was it?"}) + "\n"))
    (tmp_path / "quiz.yaml").write_text(
        "name: quiz\nfile: quiz.jsonl\nfewshot: {count: 2, file: train.jsonl}\n"
    )
    (found,) = _evaluate(gpt2_folder, tmp_path / "quiz.yaml").tasks.values()
    assert found.scored[0].example.prompts == ("Was it? no\n\nWas it? no\n\nIs it?",)
    with pytest.raises(UserError, match="asks for 7 demonstrations, but there are 2"):
        _evaluate(gpt2_folder, tmp_path / "quiz.yaml", shots=7)
