"""Every log-probability and accuracy equals that of lm-evaluation-harness 0.4.13."""

from __future__ import annotations

import ast
import json
import string
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness (extra: test)")

from lm_eval.evaluator import simple_evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import make_table

from gaguide.distributed import World
from gaguide.evaluate import EvaluateSettings, evaluate

pytestmark = pytest.mark.processes

_SHOTS = "".join(f"Q: Is {at} not an odd number? A: {'no' if at % 2 else 'yes'}.\n" for at in range(12))
_ACCURACIES = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")
_EDGES = [
    {"prompt": "", "classes": ["Hello there", "The end of it"], "answer_index": 0},
    {"prompt": "The value is ", "classes": ["not used.", "used."], "answer_index": 0},
    {"prompt": "A line\n\n", "classes": ["another line", "  indented"], "answer_index": 1},
    {"prompt": "Die Straße führt nicht", "classes": [" über den Fluß 🌊.", " 東京へ"], "answer_index": 1},
    {"prompt": "Same", "classes": [" words", " words", " others"], "answer_index": 1},
    {"prompt": "One token", "classes": [" a", " b", " c", " d", " e"], "answer_index": 4},
    {"prompt": "A prefix", "classes": [" of", " of it", " of it all"], "answer_index": 1},
    {"prompt": "no space", "classes": ["between", "words"], "answer_index": 0},
    {"prompt": "<|endoftext|>After the end", "classes": [" it begins", " it ends"], "answer_index": 0},
    {"prompt": _SHOTS * 4 + "Q: Is 13 not odd? A:", "classes": [" no", " it is."], "answer_index": 0},
    {"prompt": _SHOTS + "Q: Is 14 not an odd number? A:", "classes": [" no", " yes"], "answer_index": 1},
    {"prompt": _SHOTS + "Q: Is 15 not an odd number? A:", "classes": [" no", " yes"], "answer_index": 0},
]  # fmt: skip


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data file of edge cases."""
    folder = tmp_path_factory.mktemp("sets")
    (folder / "edges.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _EDGES))
    return folder


def _compare(
    model: Path,
    file: Path,
    limit: int | None,
    tmp_path: Path,
    shots: list[dict] | None = None,
    delimiter: str = "",
    metrics: tuple[str, ...] = _ACCURACIES,
) -> dict:
    """Compare gaguide with the harness on `file`; returns the harness's results."""
    config = {
        "task": "compared", "dataset_path": "json", "dataset_kwargs": {"data_files": {"train": str(file)}},
        "output_type": "multiple_choice", "test_split": "train", "doc_to_text": "prompt",
        "doc_to_choice": "classes", "doc_to_target": "answer_index", "target_delimiter": delimiter,
        "metric_list": [{"metric": name} for name in metrics],
    }  # fmt: skip
    task = tmp_path / "ours.yaml"
    ours_config: dict = {
        "name": "compared", "file": str(file), "delimiter": delimiter, "mutual_information": True,
    }  # fmt: skip
    if shots:
        config |= {"num_fewshot": len(shots), "fewshot_config": {"sampler": "first_n", "samples": shots}}
        (tmp_path / "shots.jsonl").write_text("".join(json.dumps(row) + "\n" for row in shots))
        ours_config |= {"fewshot": {"count": 1, "file": "shots.jsonl"}}
    task.write_text(json.dumps(ours_config))
    (tmp_path / "compared.yaml").write_text(json.dumps(config))  # JSON is YAML
    theirs = simple_evaluate(
        HFLM(pretrained=str(model), dtype="float32", batch_size=8, device="cpu"),
        tasks=["compared"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        limit=limit,
        bootstrap_iters=1,  # 0 would omit the standard error of a mean, too
    )
    settings = EvaluateSettings(limit=limit, batch_tokens=1000)
    (ours,) = evaluate(model, [str(task)], tmp_path / "out", World(), settings).tasks.values()
    samples = sorted(theirs["samples"]["compared"], key=lambda sample: sample["doc_id"])
    assert len(samples) == len(ours.scored)
    for sample, scored in zip(samples, ours.scored, strict=True):
        wanted = [response[0][0] for response in sample["resps"]]
        assert scored.log_probabilities == pytest.approx(wanted, abs=1e-4)
        classes = sample["doc"]["classes"]
        given, alone = wanted[: len(classes)], wanted[len(classes) :]
        compared = {
            "acc": given,
            "acc_norm": [value / len(text) for value, text in zip(given, classes, strict=True)],
            "acc_bytes": [value / len(text.encode()) for value, text in zip(given, classes, strict=True)],
            "acc_mutual_info": [value - other for value, other in zip(given, alone, strict=True)],
        }
        for name, values in compared.items():
            first, second = sorted(values)[:-3:-1]
            if first - second > 2e-4:  # closer than that, rounding decides
                assert scored.is_right(name) == bool(sample[name])
    harness = theirs["results"]["compared"]
    if "brier_score" in metrics:
        assert ours.metrics["brier_score"].value == pytest.approx(harness["brier_score,none"], abs=1e-4)
    for name in _ACCURACIES:
        assert ours.metrics[name].value == pytest.approx(harness[f"{name},none"], abs=1e-9)
        assert ours.metrics[name].stderr == pytest.approx(harness[f"{name}_stderr,none"], abs=1e-9)
    return theirs


def test_edge_cases_equal_the_harness(gpt2_folder: Path, sets: Path, tmp_path: Path) -> None:
    assert sum(character in string.ascii_letters for character in _EDGES[9]["prompt"]) > 600  # > 128 tokens
    _compare(gpt2_folder, sets / "edges.jsonl", None, tmp_path)


def test_memo_trap_equals_the_harness(gpt2_folder: Path, memo_trap: Path, tmp_path: Path) -> None:
    # The release has lists in strings; the harness reads converted data sets.
    file = tmp_path / "converted.jsonl"
    rows = [json.loads(line) for line in memo_trap.read_text("utf-8").splitlines()]
    rows = [row | {"classes": ast.literal_eval(row["classes"])} for row in rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    # The harness's Brier score needs the same number of classes everywhere.
    _compare(gpt2_folder, file, 150, tmp_path, metrics=(*_ACCURACIES, "brier_score"))


def test_cached_demonstrations_equal_the_harness(
    gpt2_folder: Path, demonstrated: Path, tmp_path: Path
) -> None:
    _compare(gpt2_folder, demonstrated, None, tmp_path)
    assert json.loads((tmp_path / "out" / "results.json").read_text())["tokens"]["kept_prefixes"] == 1


def test_a_demonstration_and_a_delimiter_give_the_same_prompts(
    gpt2_folder: Path, sets: Path, tmp_path: Path
) -> None:
    # A delimiter this long changes `acc_norm` if its characters are counted.
    shots = [{"prompt": "Q: Is 3 odd? A:", "classes": [" no", " yes"], "answer_index": 1}]
    _compare(gpt2_folder, sets / "edges.jsonl", None, tmp_path, shots, delimiter=" = ... = ")


def test_the_results_file_has_the_form_of_the_harness(gpt2_folder: Path, sets: Path, tmp_path: Path) -> None:
    theirs = _compare(gpt2_folder, sets / "edges.jsonl", None, tmp_path)
    tracker = EvaluationTracker(output_path=str(tmp_path / "theirs"))
    tracker.general_config_tracker.log_experiment_args("hf", "pretrained=x", "", "", False)
    samples = theirs.pop("samples")
    tracker.save_results_aggregated(results=theirs, samples=samples)
    (file,) = (tmp_path / "theirs").rglob("results_*.json")
    wanted = json.loads(file.read_text())
    found = json.loads((tmp_path / "out" / "results_lm_eval.json").read_text())
    assert wanted.keys() - {"start_time", "end_time", "model_source"} <= found.keys()
    (wanted_task,), (found_task,) = wanted["results"].values(), found["results"].values()
    assert wanted_task.keys() - {"name", "alias"} <= found_task.keys()
    for key in ("group_subtasks", "n-shot", "higher_is_better", "n-samples", "configs", "versions"):
        assert type(wanted[key]) is type(found[key])
    assert "acc_norm" in make_table(found)
