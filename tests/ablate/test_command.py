"""`gaguide ablate` from folders to records and page, and its effect on tasks compared with the evaluator."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from gaguide.ablate.__main__ import show
from gaguide.ablate.command import main
from gaguide.ablate.records import AblationRecord, read_ablation
from gaguide.data import load_tokenizer
from gaguide.distributed import World
from gaguide.errors import EXIT_NOT_FINITE, EXIT_USER_ERROR, UserError
from gaguide.evaluate import EvaluateSettings, evaluate
from gaguide.evaluate.encode.encoder import Encoder
from gaguide.evaluate.encode.span_marks import span_marks
from gaguide.evaluate.tasks.example import Example
from gaguide.evaluate.tasks.read import TaskData
from gaguide.evaluate.tasks.task import Task
from gaguide.report.ablation_csv import effect_rows, head_rows
from tests.support.models import sharpen

LAYERS, HEADS = 2, 4


@pytest.fixture(scope="module")
def shards(embedded_shards: Path) -> Path:
    return embedded_shards


def save(folder: Path, shards: Path, seed: int) -> Path:
    tokenizer = load_tokenizer(shards / "tokenizer")
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_layer=LAYERS, n_embd=32, n_head=HEADS, n_positions=128,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    sharpen(model, 0.15)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [save(folder / name, shards, seed) for seed, name in enumerate(("first", "second"))]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Examples that share a prefix, so that its keys and values are cached with the head removed."""
    shots = "".join(f"Q: Is {at} not odd? A: {'no' if at % 2 else 'yes'}.\n" for at in range(4))
    rows = [
        {"prompt": f"{shots}Q: Is {at} not odd? A:", "classes": [" no", " yes"], "answer_index": at % 2}
        for at in range(24)
    ]
    path = tmp_path_factory.mktemp("tasks") / "odd.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def without(model: Path, folder: Path, layer: int, head: int) -> Path:
    """A copy of the model whose head writes nothing: its rows of the output projection are zero."""
    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    width = 32 // HEADS
    weights[f"transformer.h.{layer}.attn.c_proj.weight"][head * width : (head + 1) * width] = 0
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def ablated(
    models: list[Path], shards: Path, tasks: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[AblationRecord, Path]:
    folder = tmp_path_factory.mktemp("out") / "ablation"
    words = ["--model", *map(str, models), "--plan", "3-negation", "--text", str(shards), "--blocks", "9"]
    words += ["--block-length", "64", "--batch", "4", "--tasks", str(tasks), "--all-heads", "--controls", "1"]
    words += ["--methods", "zero", "mean", "resample", "edges", "--output", str(folder)]
    assert main(words, show) == 0
    return read_ablation(folder), folder


def test_the_records_have_every_head_with_its_role(ablated: tuple[AblationRecord, Path]) -> None:
    record, _ = ablated
    first, second = record.models
    assert (first.name, second.name, record.before, record.deciding) == ("first", "second", "first", "zero")
    for model in record.models:
        assert [(head.layer, head.head) for head in model.heads] == [
            (layer, head) for layer in range(LAYERS) for head in range(HEADS)
        ]
        assert {head.head for head in model.with_role("guided")} == {0, 1, 2}
        assert {head.head for head in model.with_role("control")} == {3}
        assert model.loss is not None and model.band_tokens["rest"] > 0
        assert set(model.together) == {"zero", "mean", "resample", "edges"}
        assert any("over 9 blocks" in note for note in model.notes)
    assert all(head.rise is None for head in first.heads)
    assert all(head.rise is not None for head in second.with_role("guided"))
    head = second.heads[0]
    loss = head.methods["zero"].loss
    assert loss.difference is not None and loss.low is not None and loss.low < loss.difference
    assert loss.p_holm is not None and loss.p is not None and loss.p_holm >= loss.p
    over = head.methods["zero"].over_first
    assert over is not None and over.difference == pytest.approx(
        loss.difference - (first.heads[0].methods["zero"].loss.difference or 0), abs=1e-12
    )
    assert not head.methods["resample"].tasks and head.methods["mean"].tasks


def test_the_tables_and_the_page_say_the_same(ablated: tuple[AblationRecord, Path], tmp_path: Path) -> None:
    record, folder = ablated
    heads, effects = list(head_rows(record)), list(effect_rows(record))
    assert len(heads) == 2 * LAYERS * HEADS
    one = record.models[1].heads[0]
    (loss,) = [
        row for row in effects
        if (row["model"], row["layer"], row["head"], row["method"], row["effect"], row["task"])
        == ("second", 0, 0, "zero", "loss", None)
    ]  # fmt: skip
    assert (loss["difference"], loss["p_holm"]) == (
        one.methods["zero"].loss.difference,
        one.methods["zero"].loss.p_holm,
    )
    page = (folder / "report.html").read_text("utf-8")
    assert one.verdict in page and "<svg" in page and f"{loss['difference']:+.4f}" in page
    assert "odd · acc · layer 0 · head 0 (zero)" in page


def test_tasks_without_a_head_are_the_evaluators_scores_of_a_model_without_it(
    ablated: tuple[AblationRecord, Path], models: list[Path], tasks: Path, tmp_path: Path
) -> None:
    record, _ = ablated
    settings = EvaluateSettings()
    with_it = evaluate(models[0], [str(tasks)], None, World(), settings).tasks["odd"].metrics
    removed = without(models[0], tmp_path / "removed", 1, 2)
    without_it = evaluate(removed, [str(tasks)], None, World(), settings).tasks["odd"].metrics
    model = record.models[0]
    for metric in ("acc", "class_loss"):
        assert model.tasks["odd"][metric] == pytest.approx(with_it[metric].value, abs=1e-5)
        effect = model.heads[HEADS + 2].methods["zero"].tasks["odd"][metric]
        change = without_it[metric].value - with_it[metric].value
        assert effect.difference == pytest.approx(change, abs=2e-5)
        assert effect.count == 24
    assert abs(without_it["class_loss"].value - with_it["class_loss"].value) > 1e-3


def test_faults_are_reported_at_once_and_nothing_is_overwritten(
    models: list[Path], shards: Path, ablated: tuple[AblationRecord, Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = ["--model", str(models[0]), str(models[0]), "--plan", "4-negation", "--methods", "remove"]
    assert main([*words, "--blocks", "0", "--output", str(tmp_path / "o")]) == EXIT_USER_ERROR
    said = capsys.readouterr().err
    for part in ("is given twice", "is not an experiment or a file", "must be one of mean", "--blocks"):
        assert part in said
    again = ["--model", str(models[0]), "--plan", "1-negation", "--text", str(shards)]
    (tmp_path / "file").touch()
    assert main([*again, "--output", str(tmp_path / "file")]) == EXIT_USER_ERROR
    assert "is a file" in capsys.readouterr().err
    assert main([*again, "--output", str(ablated[1])]) == EXIT_USER_ERROR
    assert "already has an ablation.json" in capsys.readouterr().err
    assert main([*again[:4], "--output", str(tmp_path / "o")]) == EXIT_USER_ERROR
    assert "must give at least one of them" in capsys.readouterr().err
    assert main([*again, "--before", "start", "--output", str(tmp_path / "o")]) == EXIT_USER_ERROR
    assert "not that of a run" in capsys.readouterr().err
    assert main([*again[:2], "--text", str(shards), "--output", str(tmp_path / "o")]) == EXIT_USER_ERROR
    assert "is required: none of the models is in the folder of a run" in capsys.readouterr().err


def test_a_model_that_is_not_finite_gives_no_number_and_says_so(
    models: list[Path], shards: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(models[0], tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["transformer.h.1.mlp.c_fc.weight"][0, 0] = float("nan")
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    words = ["--model", str(broken), "--plan", "1-negation", "--text", str(shards), "--blocks", "4"]
    words += ["--block-length", "32", "--output", str(tmp_path / "o")]
    assert main(words, show) == EXIT_NOT_FINITE
    (model,) = read_ablation(tmp_path / "o").models
    assert model.loss is None and {head.used for head in model.with_role("guided")} == {"not measured"}
    assert any("not finite" in note for note in model.notes)


def test_models_of_the_same_content_are_named(
    models: list[Path], shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = shutil.copytree(models[0], tmp_path / "twin")
    # As of large files, which are hashed in parts: a copy has another time of change.
    monkeypatch.setattr("gaguide.model.content._WHOLE_BYTES", 2**16)
    monkeypatch.setattr("gaguide.model.content._PART_BYTES", 2**10)
    os.utime(twin / "model.safetensors", ns=(1, 1))
    words = ["--model", str(models[0]), str(twin), "--plan", "1-negation", "--text", str(shards)]
    words += ["--blocks", "12", "--block-length", "128", "--methods", "zero", "--controls", "0"]
    assert main([*words, "--output", str(tmp_path / "o")], show) == 0
    _, second = read_ablation(tmp_path / "o").models
    assert any("files are the same as those of" in note for note in second.notes)
    assert all(head.moved == "not moved" for head in second.heads)


def test_the_start_of_a_run_is_read_in_the_precision_of_the_models(
    models: list[Path], shards: Path, tmp_path: Path
) -> None:
    """In another one, rounding shifts all blocks alike, and a model that has not moved would seem to have."""
    run = {
        "output": str(tmp_path / "run"), "model": {"name": str(models[0])},
        "data": {"shards": str(shards), "block_length": 64}, "guidance": {"experiment": "1-negation"},
        "train": {"steps": 1, "global_batch": 1},
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(json.dumps(run))
    words = ["--model", str(models[0]), "--plan", str(tmp_path / "config.yaml"), "--before", "start"]
    words += ["--dtype", "bf16", "--blocks", "40", "--methods", "zero", "--controls", "0"]
    assert main([*words, "--output", str(tmp_path / "o")]) == 0
    for head in read_ablation(tmp_path / "o").models[0].with_role("guided"):
        assert head.attention == head.attention_before and head.moved == "not moved"


def test_a_record_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ablation.json").write_text('{"models": 3}')
    with pytest.raises(UserError, match="is not an ablation"):
        read_ablation(tmp_path)


@pytest.mark.slow
def test_removing_edges_to_spans_of_the_examples_is_that_to_a_lexicon_of_the_same_words(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"prompt": f"Say: is {at} not odd, or not so?", "completion": f" no {at}",
         "scope": [[11 + (at > 9), 14 + (at > 9)]], "bad": [[2, 99]]}
        for at in range(5, 17)
    ]  # fmt: skip
    rows[3]["scope"] = None
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own.yaml").write_text("scope: ['not']\n")
    (tmp_path / "spans.yaml").write_text("plan: [{pattern: 'spans:scope', heads: [0, 1]}]\n")
    own = f"mode: words\nlexicons: {tmp_path / 'own.yaml'}\n"
    (tmp_path / "both.yaml").write_text(f"plan: [{{pattern: scope@scope, heads: [0, 1]}}]\n{own}")
    (tmp_path / "words.yaml").write_text(f"plan: [{{pattern: scope, heads: [0, 1]}}]\n{own}")
    task = "name: t\nsummary: s\nkind: sequence_prob\nfile: rows.jsonl\n"
    path = tmp_path / "t.yaml"
    path.write_text(f"{task}spans: {{scope: scope}}\n")
    words = ["--model", str(models[0]), "--tasks", str(path), "--methods", "edges", "--controls", "1"]
    found = []
    for plan in ("spans", "both", "words"):
        output = tmp_path / plan
        assert main([*words, "--plan", str(tmp_path / f"{plan}.yaml"), "--output", str(output)]) == 0
        (model,) = read_ablation(output).models
        found.append([head.methods["edges"].tasks["t"]["loss"].difference for head in model.heads])
    assert found[0] == found[1] and all(found[0])
    assert found[0] != found[2]  # "not" before "odd", but not that before "so"

    again = [*words, "--plan", str(tmp_path / "spans.yaml"), "--output", str(tmp_path / "o")]
    for text, said in (
        (f"{task}spans: {{scope: bad}}\n", "not spans of the prompt"), (task, "gives no spans for the plan"),
        (f"{task}spans: {{scope: scope}}\nshards: x\n", "spans need prompts"),
    ):  # fmt: skip
        path.write_text(text)
        assert main(again) == EXIT_USER_ERROR
        assert said in capsys.readouterr().err


def test_spans_of_a_prompt_keep_their_place_behind_demonstrations(shards: Path) -> None:
    tokenizer = load_tokenizer(shards / "tokenizer")
    text = "It is not so and"
    prompts = ("Naïve demonstration, not one.\n\n" + text, "It is")
    spans = (("scope", 6 - len(text), 9 - len(text), "not"),)
    example = Example("0", prompts, (" done", " lost"), 0, spans=spans)
    task = Task(name="t", spans={"scope": "s"})
    data = TaskData(task, "logodds", "made up", None, (example,), 1, ())
    for longest in (64, 9):  # whole, and cut on the left
        pairs = [Encoder(tokenizer, longest).encode_pair(*pair) for pair in example.pairs]
        marks = span_marks([data], [pairs], tokenizer, ["scope"])["scope"]
        ids = torch.tensor([[*pair.input_ids, *[0] * (70 - len(pair.input_ids))] for pair in pairs])
        marked = marks(ids)
        assert not marked[2:].any()  # the other prompt has no spans
        for row, pair in zip(marked[:2].tolist(), pairs[:2], strict=True):
            chosen = [token for token, is_marked in zip(pair.input_ids, row) if is_marked]
            assert tokenizer.decode(chosen).strip() == "not"
            assert longest == 9 or tokenizer.decode(pair.input_ids[: row.index(True)]).endswith("It is")
    with pytest.raises(UserError, match="is not one of those examples"):
        marks(torch.tensor([[1, 2, 3]]))
