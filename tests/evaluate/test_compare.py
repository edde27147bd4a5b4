"""`gaguide eval compare` on evaluations of real models by gaguide and by lm-evaluation-harness."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gaguide.cli import make_app
from gaguide.distributed import World
from gaguide.errors import UserError
from gaguide.evaluate import EvaluateSettings, evaluate
from gaguide.evaluate.compare.sources import read_evaluations
from gaguide.report.comparison_report import comparison_report, differences_table, power_table
from tests.evaluate.comparing import compare, find_test

_LETTERS = "abcdefgh"


def _row(at: int) -> dict:
    """A question whose choices are two different letters, in all orders, so that random models differ."""
    first = at % 8
    second = (first + 1 + at // 8 % 7) % 8
    return {
        "prompt": f"Q: What is number {at} of {at * 7 % 64} not?\nA:", "answer_index": at % 2,
        "set": f"s{at // 4}", "classes": [f" {_LETTERS[first]}", f" {_LETTERS[second]}"],
    }  # fmt: skip


_ROWS = [_row(at) for at in range(60)]


@pytest.fixture(scope="module")
def quiz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data file of 60 questions."""
    path = tmp_path_factory.mktemp("quiz") / "quiz.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in _ROWS))
    return path


@pytest.fixture(scope="module")
def ours(
    gpt2_folder: Path, other_gpt2_folder: Path, quiz: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """The evaluations of two models on the quiz and on generated sets."""
    folder = tmp_path_factory.mktemp("ours")
    for name, model in (("first", gpt2_folder), ("second", other_gpt2_folder)):
        tasks = [str(quiz), "synthetic-contrast", "synthetic-flip"]
        evaluate(str(model), tasks, folder / name, World(), EvaluateSettings(limit=60))
    return folder / "first", folder / "second"


def _rows(folder: Path, task: str) -> list[dict]:
    import pyarrow.parquet as pq

    return [row for row in pq.read_table(folder / "examples.parquet").to_pylist() if row["task"] == task]


def test_two_models_are_tested_on_every_task(ours: tuple[Path, Path]) -> None:
    compared = compare(*ours)
    assert {one.task for one in compared.tests} == {"quiz", "synthetic-contrast", "synthetic-flip"}
    acc = find_test(compared, "quiz", "acc")
    before, now = (_rows(folder, "quiz") for folder in ours)
    gained = [b["id"] for a, b in zip(before, now, strict=True) if b["correct"] and not a["correct"]]
    lost = [b["id"] for a, b in zip(before, now, strict=True) if a["correct"] and not b["correct"]]
    assert (acc.test, acc.gained, acc.lost) == ("mcnemar", len(gained), len(lost))
    assert gained or lost
    assert acc.difference == pytest.approx((len(gained) - len(lost)) / 60)
    assert acc.is_main
    assert (acc.evaluation, acc.baseline) == ("second", "first")
    changed = {kind: {one.id for one in compared.changes if (one.task, one.change) == ("quiz", kind)}
               for kind in ("gained", "lost")}  # fmt: skip
    assert changed == {"gained": set(gained), "lost": set(lost)}
    one = next(one for one in compared.changes if one.task == "quiz")
    row = next(row for row in now if row["id"] == one.id)
    assert one.prompt == row["prompt"]
    assert one.prediction == row["continuations"][row["predicted"]]
    assert one.answer == row["continuations"][row["answer_index"]]
    loss = find_test(compared, "synthetic-contrast", "loss")
    assert (loss.test, loss.better, loss.gained) == ("bootstrap", "low", None)
    assert loss.effect is not None and loss.effect.name == "cohen_d"
    assert loss.detectable is not None and loss.detectable > 0
    # Holm over the main metrics of the three tasks; a further metric is a family of its own.
    main = sorted(one.p for one in compared.tests if one.is_main and one.p is not None)
    assert min(one.p_holm for one in compared.tests if one.is_main) == pytest.approx(min(1, 3 * main[0]))
    further = find_test(compared, "quiz", "class_loss")
    assert further.p_holm == further.p


def test_groups_of_examples_are_the_unit(
    gpt2_folder: Path, other_gpt2_folder: Path, quiz: Path, tmp_path: Path, ours: tuple[Path, Path]
) -> None:
    compared = compare(*_harness(quiz, tmp_path, gpt2_folder, other_gpt2_folder), group="set")
    grouped = find_test(compared, "quiz", "acc")
    alone = find_test(compare(*ours), "quiz", "acc")
    assert grouped.groups == 15
    assert (grouped.gained, grouped.lost, grouped.difference) == (alone.gained, alone.lost, alone.difference)
    assert grouped.p != alone.p
    with pytest.raises(UserError, match="does not have such a field"):
        read_evaluations([next(tmp_path.rglob("samples_*.jsonl"))], "unknown")


_CHOICE = {"output_type": "multiple_choice", "doc_to_text": "prompt", "doc_to_choice": "classes",
           "doc_to_target": "answer_index", "target_delimiter": ""}  # fmt: skip
_CONFIGS: dict[str, dict] = {
    "quiz": _CHOICE | {"metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}]},
    "mutual": _CHOICE | {"metric_list": [{"metric": "acc"}, {"metric": "acc_mutual_info"}]},
    "greedy": {"output_type": "loglikelihood", "doc_to_text": "prompt", "doc_to_target": "{{classes[0]}}",
               "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}]},
    "documents": {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{prompt}}",
                  "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}]},
    "contexts": {"output_type": "multiple_choice", "doc_to_text": "answer_index",
                 "doc_to_choice": "{{[prompt + classes[0], prompt + classes[1]]}}",
                 "doc_to_target": "{{' or'}}", "metric_list": [{"metric": "acc"}]},
}  # fmt: skip


def _harness(quiz: Path, folder: Path, *models: Path, tasks: Sequence[str] = ("quiz",)) -> list[Path]:
    """Evaluate models on the quiz by lm-evaluation-harness; the folders with its samples."""
    pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness (extra: test)")
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    common = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"train": str(quiz)}},
              "test_split": "train"}  # fmt: skip
    for name, config in _CONFIGS.items():
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name} | common | config))  # JSON is YAML
    written = []
    for at, model in enumerate(models):
        tracker = EvaluationTracker(output_path=str(folder / f"theirs-{at}"))
        results = simple_evaluate(
            HFLM(pretrained=str(model), dtype="float32", batch_size=8, device="cpu"),
            tasks=list(tasks),
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            bootstrap_iters=0,
            log_samples=True,
            evaluation_tracker=tracker,
        )
        samples = results.pop("samples")
        tracker.save_results_aggregated(results=results, samples=samples)
        for task in tasks:
            tracker.save_results_samples(task, samples[task])
        written.append(folder / f"theirs-{at}")
    return written


@pytest.mark.processes  # datasets asks git for its version
def test_the_harness_files_give_the_same_comparison(
    gpt2_folder: Path, other_gpt2_folder: Path, quiz: Path, tmp_path: Path, ours: tuple[Path, Path]
) -> None:
    theirs = _harness(quiz, tmp_path, gpt2_folder, other_gpt2_folder)
    mixed = compare(ours[0], theirs[0])
    same = find_test(mixed, "quiz", "acc")
    # One model by both: every example is matched by content and answered alike.
    assert (same.count, same.gained, same.lost) == (60, 0, 0)
    assert find_test(mixed, "quiz", "class_loss").difference == pytest.approx(0, abs=1e-5)
    assert not [note for note in mixed.notes if "quiz" in note]
    by_ours, by_theirs = (find_test(compare(*paths), "quiz", "acc") for paths in (ours, theirs))
    for name in ("difference", "low", "high", "p", "p_exact", "gained", "lost", "detectable", "effect"):
        assert getattr(by_theirs, name) == getattr(by_ours, name), name
    file = next(theirs[1].rglob("samples_quiz_*.jsonl"))
    results = next(theirs[1].rglob("results_*.json"))
    for path in (file, file.parent, results):
        assert (
            read_evaluations([path])[0].tasks["quiz"].keys
            == read_evaluations([theirs[1]])[0].tasks["quiz"].keys
        )


@pytest.mark.processes  # datasets asks git for its version
def test_every_form_of_a_task_is_the_same_in_both_programs(
    gpt2_folder: Path, quiz: Path, tmp_path: Path
) -> None:
    (theirs,) = _harness(quiz, tmp_path, gpt2_folder, tasks=tuple(_CONFIGS))
    files = [str(tmp_path / f"{name}.yaml") for name in _CONFIGS]
    evaluate(str(gpt2_folder), files, tmp_path / "ours", World(), EvaluateSettings())
    compared = compare(tmp_path / "ours", theirs)
    wanted = {
        ("quiz", "acc"), ("quiz", "acc_norm"), ("quiz", "class_loss"), ("mutual", "acc_mutual_info"),
        ("greedy", "loss"), ("greedy", "greedy_acc"), ("documents", "word_loss"),
        ("documents", "bits_per_byte"),
    }  # fmt: skip
    assert wanted <= {(one.task, one.metric) for one in compared.tests}
    for one in compared.tests:
        assert (one.count, one.unmatched, one.baseline_unmatched) == (60, 0, 0)
        assert one.difference == pytest.approx(0, abs=1e-5), one
    # Choices in the prompts: by id, as the harness does not record which of them is right.
    assert any("contexts: not compared" in note and "--match id" in note for note in compared.notes)
    found = find_test(compare(tmp_path / "ours", theirs, match="id"), "contexts", "acc")
    assert (found.count, found.difference, found.gained) == (60, 0, 0)


def test_other_examples_are_left_out_and_counted(
    ours: tuple[Path, Path], other_gpt2_folder: Path, tmp_path: Path
) -> None:
    # The first 20 questions under new ids in another order, and one that the other was not asked.
    rows = [*reversed(_ROWS[:20]), _ROWS[0] | {"prompt": "Q: And?\nA:"}, _ROWS[3]]
    (tmp_path / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluate(
        str(other_gpt2_folder), [str(tmp_path / "quiz.jsonl")], tmp_path / "few", World(), EvaluateSettings()
    )
    compared = compare(ours[0], tmp_path / "few")
    acc = find_test(compared, "quiz", "acc")
    assert (acc.count, acc.unmatched, acc.baseline_unmatched, acc.repeated) == (20, 2, 40, 0)
    whole = find_test(compare(*ours), "quiz", "acc")
    before = {row["id"]: row["correct"] for row in _rows(ours[0], "quiz")}
    after = {row["id"]: row["correct"] for row in _rows(ours[1], "quiz")}
    first = [str(at) for at in range(20)]
    assert acc.gained == sum(after[one] and not before[one] for one in first)
    assert acc.lost == sum(before[one] and not after[one] for one in first)
    assert whole.count == 60
    assert any("20 examples that both were asked; left out are 2 that only few and 40" in note
               for note in compared.notes)  # fmt: skip
    assert any("synthetic-flip" in note and "Only first" in note for note in compared.notes)
    # Rows that ask the same are paired in their order, count, and are reported.
    twice = find_test(compare(tmp_path / "few", tmp_path / "few" / "results.json"), "quiz", "acc")
    assert (twice.count, twice.repeated, twice.difference) == (22, 1, 0)


def test_prompts_that_differ_are_compared_by_id_when_asked(
    gpt2_folder: Path, quiz: Path, tmp_path: Path
) -> None:
    shots = tmp_path / "shots.jsonl"
    shots.write_text(
        json.dumps({"prompt": "Q: Is 1 not odd?\nA:", "classes": [" no", " it is."], "answer_index": 0})
    )
    for name, fewshot in (("zero", {}), ("one", {"fewshot": {"count": 1, "file": str(shots)}})):
        task = tmp_path / f"{name}.yaml"
        task.write_text(json.dumps({"name": "quiz", "file": str(quiz)} | fewshot))
        evaluate(str(gpt2_folder), [str(task)], tmp_path / name, World(), EvaluateSettings())
    by_content = compare(tmp_path / "zero", tmp_path / "one")
    assert not by_content.tests
    assert any("--match id" in note for note in by_content.notes)
    by_id = compare(tmp_path / "zero", tmp_path / "one", match="id")
    assert find_test(by_id, "quiz", "acc").count == 60
    assert any("60 of 60 prompts differ" in note for note in by_id.notes)


def test_every_format_is_written_and_nothing_is_printed_raw(
    ours: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    output = tmp_path / "new" / "compared.html"
    arguments = ["eval", "compare", *map(str, ours), "--output", str(output), "--formats", "all"]
    found = CliRunner().invoke(make_app(), arguments)
    assert found.exit_code == 0, found.output
    assert "quiz · acc" in found.output
    assert "second against first" in found.output
    names = {path.name for path in output.parent.iterdir()}
    assert names == {
        "compared.html", "compared.md", "compared.json", "compared.csv", "compared-examples.csv",
        "compared.tex", "compared-differences.png", "compared-differences.svg", "compared-differences.pdf",
    }  # fmt: skip
    tree = json.loads((output.parent / "compared.json").read_text("utf-8"))
    compared = compare(*ours)
    assert len(tree["tests"]) == len(compared.tests)
    assert len(tree["examples"]) == len(compared.changes)
    assert tree["tests"][0]["p"] == compared.tests[0].p
    page = output.read_text("utf-8")
    for text in ("What these examples could show", "Examples that changed", "gained", "Holm"):
        assert text in page


def test_a_copy_of_an_evaluation_is_named(ours: tuple[Path, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(ours[0], tmp_path / "copy")
    copied, other = (" ".join(compare(ours[0], one).notes) for one in (copy, ours[1]))
    assert "quiz: every score of the 60 examples is the same" in copied
    assert "every score" not in other


def test_mistakes_are_reported_at_once(ours: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    bad = tmp_path / "samples_quiz_2026-11-29T00-00-00.000000.jsonl"
    bad.write_text('{"doc_id": 0}\n')
    with pytest.raises(UserError) as caught:
        read_evaluations([ours[0], tmp_path / "empty", tmp_path / "missing", bad])
    text = str(caught.value)
    assert "contains neither examples.parquet nor samples_TASK_DATE.jsonl" in text
    assert "does not exist" in text
    assert f"{bad}:1: lacks 'arguments'" in text
    with pytest.raises(UserError, match="given twice"):
        read_evaluations([ours[0], ours[0]])
    wrong = ["eval", "compare", str(ours[0]), "--detect", "x", "--output", str(tmp_path / "a.doc")]
    with pytest.raises(UserError) as options:
        CliRunner().invoke(make_app(), wrong, catch_exceptions=False)
    for part in ("must be two or more", "--detect", "unknown kind of file"):
        assert part in str(options.value)


def test_constant_answers_are_named(gpt2_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "short.jsonl"
    classes = [" no", " no it is a very long answer"]
    rows = [{"prompt": f"{at} is odd:", "classes": classes, "answer_index": at % 2} for at in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("a", "b"):
        evaluate(str(gpt2_folder), [str(path)], tmp_path / name, World(), EvaluateSettings())
    compared = compare(tmp_path / "a", tmp_path / "b")
    acc, loss = find_test(compared, "short", "acc"), find_test(compared, "short", "class_loss")
    assert (acc.doubt, acc.baseline_doubt, loss.doubt) == ("constant", "constant", None)
    found = differences_table([acc])
    assert [cell.text for cell in found.rows[0][1][:2]] == ["0.5000‡", "0.5000‡"]
    assert "not a measurement of the model" in found.note
    report = comparison_report(compared)
    assert any("measures the data, not the model" in text for text in report.cautions)
    assert report.findings == ("b against a: nothing is measured on short, as answers are constant (‡).",)
    shown = {name: [cell.text for cell in cells] for name, cells in power_table([acc, loss]).rows}
    assert acc.detectable is not None and shown["short · acc ↑"][1:5] == ["–", "0%", "0%", "0%"]
    assert shown["short · class_loss ↓"][1:5] == ["–"] * 4, "no spread: power is not known, and not 0"
