"""`gaguide eval golden`: published figures are confirmed, and everything else fails with its meaning."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from gaguide.cli import make_app
from gaguide.errors import UserError
from gaguide.evaluate.results.golden import compare_golden, measure, read_figures
from gaguide.evaluate.tasks.read import read_tasks
from gaguide.evaluate.tasks.task import built_in_tasks, groups
from gaguide.files import hash_file

FAMILY = Path(__file__).parents[3] / "shared" / "data" / "gpt2_family"
FOLDERS = {
    "golden-conjunction-fallacy": "conjunction-fallacy-0shot",
    "golden-dice": "dice-0shot",
    "golden-lambada": "lambada",
}
needs_family = pytest.mark.skipif(
    not FAMILY.is_dir(), reason="needs the published results beside the repository (shared/data/gpt2_family)"
)


@needs_family
@pytest.mark.parametrize("task", FOLDERS)
def test_the_shipped_figures_are_those_of_the_published_files(task: str) -> None:
    golden = read_figures()[task]
    assert golden.sha256 == hash_file(FAMILY / FOLDERS[task] / "data.csv")
    assert golden.sha256 == built_in_tasks()[task].data_files[0].sha256
    assert list(golden.figures) == ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"]
    for model, figures in golden.figures.items():
        rows = [
            row for row in csv.DictReader((FAMILY / FOLDERS[task] / f"{model}.csv").open()) if row["loss"]
        ]
        losses = [float(row["loss"]) for row in rows]
        assert len(rows) == golden.count
        assert figures.loss == pytest.approx(math.fsum(losses) / len(rows), abs=1e-6)
        if task == "golden-lambada":
            continue
        assert figures.accuracy == pytest.approx(
            sum(row["correct"] == "1" for row in rows) / len(rows), abs=1e-6
        )
        # A margin of m nats is a loss of log(1 + e^-m).
        close = sum(math.log1p(math.exp(-0.004)) < loss < math.log1p(math.exp(0.004)) for loss in losses)
        assert figures.undecided == pytest.approx(close / len(rows), abs=1e-4)
        if figures.total_logprob is not None:
            total = math.fsum(float(row["total_logprob"]) for row in rows) / len(rows)
            assert figures.total_logprob == pytest.approx(total, abs=1e-6)


@needs_family
def test_the_tasks_ask_what_was_published() -> None:
    conjunction, dice, lambada = read_tasks(groups()["golden"], FAMILY, None)
    assert [len(task.examples) for task in (conjunction, dice, lambada)] == [1000, 1560, 5153]
    assert {one.continuations for one in dice.examples} == {(" Yes", " No")}
    assert "\r\nA:" in dice.examples[0].prompts[0]  # the published run read these line ends
    first = lambada.examples[0]
    assert first.prompts[0].endswith("I don't care about") and first.continuations == (" signs",)


def evaluation(folder: Path, model: str, shift: float = 0.0, **settings: Any) -> Path:
    """The output folder of an evaluation of golden-dice whose margins are `shift` from invented ones."""
    folder.mkdir()
    rows = []
    for at in range(1560):
        margin = ((at % 13) - 4) / 4 + 0.1 + shift
        rows.append(
            {"task": "golden-dice", "kind": "classification", "finite": True,
             "log_probabilities": [margin - 2, -2.0],
             "value": math.log1p(math.exp(-margin)), "correct": margin > 0}
        )  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), folder / "examples.parquet")
    task = {"sha256": read_figures()["golden-dice"].sha256, "count": 1560, "source": "data.csv"}
    record = {
        "model": model,
        "settings": {"dtype": "fp32", "shots": None} | settings,
        "tasks": {"golden-dice": task},
    }
    (folder / "results.json").write_text(json.dumps(record))
    return folder


def own_figures(folder: Path, *models: str) -> dict[str, Any]:
    """Figures of golden-dice as `evaluation` makes them; each further model's are one nat off."""
    measured = measure(pq.read_table(folder / "examples.parquet").to_pylist())
    golden = read_figures()["golden-dice"]
    listed = {
        name: measured.model_copy(update={"loss": measured.loss + at, "undecided": 0.0})
        for at, name in enumerate(models)
    }
    return {"golden-dice": golden.model_copy(update={"figures": listed})}


def test_computed_figures_are_confirmed_and_small_shifts_are_not(tmp_path: Path) -> None:
    figures = own_figures(evaluation(tmp_path / "a", "x/gpt2"), "gpt2", "gpt2-xl")
    confirmed = compare_golden(tmp_path / "a", figures)
    assert confirmed.matches and not confirmed.meaning and len(confirmed.checks) == 3
    rounded = evaluation(tmp_path / "b", "gpt2", shift=2e-4)
    assert compare_golden(rounded, figures).matches
    shifted = compare_golden(evaluation(tmp_path / "c", "gpt2", shift=0.02), figures)
    assert not shifted.matches and "weights, the tokenizer or the computation differ" in shifted.meaning[0]


def test_a_difference_is_explained(tmp_path: Path) -> None:
    figures = own_figures(evaluation(tmp_path / "a", "gpt2-xl"), "gpt2", "gpt2-xl")
    assert compare_golden(tmp_path / "a", figures).meaning[0].startswith("these are the figures of gpt2:")
    half = evaluation(tmp_path / "b", "gpt2", shift=0.02, dtype="bf16")
    assert "evaluated in bf16" in compare_golden(half, figures).meaning[0]


def test_comparisons_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "a", "my-model", shots=2)
    record = json.loads((folder / "results.json").read_text())
    record["tasks"]["golden-dice"] |= {"count": 10}
    (folder / "results.json").write_text(json.dumps(record))
    with pytest.raises(UserError) as caught:
        compare_golden(folder, read_figures())
    text = str(caught.value)
    assert "must be one of gpt2, gpt2-medium, gpt2-large, gpt2-xl" in text
    assert "has 10 of the 1,560 examples" in text and "has demonstrations" in text
    record["tasks"]["golden-dice"] |= {"sha256": "0" * 64}
    (folder / "results.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="its data are not the published file"):
        compare_golden(folder, read_figures(), "gpt2")


@needs_family
def test_the_command_evaluates_compares_and_sets_the_exit_code(
    gpt2_folder: Path, other_gpt2_folder: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "conjunction-fallacy-0shot").symlink_to(FAMILY / "conjunction-fallacy-0shot")
    figures = tmp_path / "figures.yaml"

    def golden(*arguments: object) -> tuple[int, str]:
        done = CliRunner().invoke(make_app(), ["eval", "golden", *map(str, arguments)])
        return done.exit_code, done.output + str(done.exception or "")

    common = ("--data", data, "--reference", "gpt2", "--output")
    assert golden("--model", gpt2_folder, *common, tmp_path / "a", "--record", figures)[0] == 0
    code, text = golden("--results", tmp_path / "a", "--reference", "gpt2", "--figures", figures)
    assert code == 0 and "3 of 3 figures match those of gpt2" in text
    code, text = golden("--model", other_gpt2_folder, *common, tmp_path / "b", "--figures", figures)
    assert code == 1 and "DIFFERS" in text
    code, text = golden("--results", tmp_path / "a", "--reference", "gpt2")
    assert code == 1 and "not compared: golden-dice" in text  # a random model is not GPT-2
    code, text = golden("--model", gpt2_folder, "--data", data)
    assert code != 0 and "must be one of gpt2" in text and "evaluate: reading" not in text
