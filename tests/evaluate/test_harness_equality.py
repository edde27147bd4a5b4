"""Task files of lm-evaluation-harness 0.4.13 give the harness's own prompts, log-probabilities and metrics.

Ten task files, three kinds of tokenizers, with and without demonstrations and chat templates; the harness
itself computes the other side.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness (extra: test)")

from lm_eval.evaluator import simple_evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from gaguide.distributed import World
from gaguide.evaluate import EvaluateSettings, evaluate
from gaguide.evaluate.encode.encoder import Encoder
from gaguide.evaluate.model_folder import find_model_folder
from gaguide.evaluate.tasks.options import TaskOptions
from gaguide.evaluate.tasks.read import read_tasks
from tests.support.harness_tasks import NAMES, write_groups, write_tasks
from tests.support.pretrained import FOLDER_VARIABLE, smollm2_folder
from tests.support.three_tokenizers import KINDS, model_folder

pytestmark = pytest.mark.processes

PER_TOKEN = 3e-5
"""Largest difference of a log-probability for each of its tokens."""
NEAR_TIE = 2e-4
"""Scores closer than this may swap places."""


@dataclass(frozen=True)
class Prompting:
    """How both sides prompt."""

    shots: int | None = None
    chat: bool = False
    multiturn: bool = False
    system: str | None = None
    names: tuple[str, ...] = field(default=NAMES)

    @property
    def options(self) -> TaskOptions:
        return TaskOptions(
            apply_chat_template=self.chat, fewshot_as_multiturn=self.multiturn,
            system_instruction=self.system or "", log_samples=True,
        )  # fmt: skip


PROMPTINGS = {
    "as-the-files-say": Prompting(),
    "three-shots": Prompting(shots=3),
    "chat": Prompting(chat=True, multiturn=True, system="Be brief."),
    "chat-two-shots": Prompting(shots=2, chat=True, multiturn=True),
    "chat-shots-in-one-message": Prompting(shots=2, chat=True, system="Be brief."),
}


@pytest.fixture(autouse=True)
def _no_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")  # for the harness's resampling


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"), rows=6)


@pytest.fixture(scope="module", params=KINDS)
def sides(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, HFLM]:
    folder = model_folder(request.param, tmp_path_factory.mktemp(request.param))
    return folder, HFLM(pretrained=str(folder), dtype="float32", batch_size=16, device="cpu")


def run_harness(model: HFLM, tasks: Path, prompting: Prompting, limit: int | None = None) -> dict[str, Any]:
    return simple_evaluate(
        model, tasks=list(prompting.names), num_fewshot=prompting.shots, limit=limit, bootstrap_iters=2,
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        apply_chat_template=prompting.chat, fewshot_as_multiturn=prompting.multiturn,
        system_instruction=prompting.system,
    )  # fmt: skip


def run_ours(
    model: Path, tasks: Path, prompting: Prompting, output: Path, limit: int | None = None
) -> dict[str, Any]:
    settings = EvaluateSettings(
        shots=prompting.shots, options=prompting.options, limit=limit, batch_tokens=1000
    )
    names = [str(tasks / f"{name}.yaml") for name in prompting.names]
    return dict(evaluate(model, names, output, World(), settings).tasks)


@pytest.mark.parametrize("name", PROMPTINGS)
def test_everything_equals_the_harness(
    name: str, sides: tuple[Path, HFLM], tasks: Path, tmp_path: Path
) -> None:
    folder, model = sides
    prompting = PROMPTINGS[name]
    theirs = run_harness(model, tasks, prompting)
    ours = run_ours(folder, tasks, prompting, tmp_path / "out")
    assert set(ours) == set(prompting.names)
    for task in prompting.names:
        compare_samples(task, theirs, ours[task])
        compare_metrics(task, theirs, tmp_path / "out")
    compare_files(theirs, prompting, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["three-shots", "chat"])
def test_a_pretrained_model_equals_the_harness(name: str, tasks: Path, tmp_path: Path) -> None:
    if not os.environ.get(FOLDER_VARIABLE):
        pytest.skip(f"{FOLDER_VARIABLE} names no folder of SmolLM2-135M-Instruct")
    folder = smollm2_folder(tmp_path)
    prompting = dataclasses.replace(
        PROMPTINGS[name], names=("jinja_quiz", "winogrande_like", "lambada_like", "wikitext_like")
    )
    model = HFLM(pretrained=str(folder), dtype="float32", batch_size=4, device="cpu")
    theirs = run_harness(model, tasks, prompting, limit=3)
    ours = run_ours(folder, tasks, prompting, tmp_path / "out", limit=3)
    for task in prompting.names:
        compare_samples(task, theirs, ours[task])
        compare_metrics(task, theirs, tmp_path / "out")


def test_log_probabilities_are_nearer_to_double_precision_than_the_bound(
    sides: tuple[Path, HFLM], tasks: Path, tmp_path: Path
) -> None:
    """The bound covers both sides: torch's log_softmax in fp32 is off by more than the sums here."""
    folder, _ = sides
    ours = run_ours(folder, tasks, PROMPTINGS["three-shots"], tmp_path / "out")
    double = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    encoder = Encoder(AutoTokenizer.from_pretrained(folder), find_model_folder(str(folder)).positions)
    for task in ("mmlu_like", "lambada_like", "wikitext_like"):
        for one in ours[task].scored:
            if ours[task].data.kind == "rolling":
                pairs = encoder.encode_rolling(one.example.continuations[0])
            else:
                pairs = [encoder.encode_pair(*pair) for pair in one.example.pairs]
            for pair, found in zip(pairs, one.log_probabilities, strict=True):
                with torch.no_grad():
                    logits_TV = double(torch.tensor([pair.input_ids])).logits[0, -len(pair.target_ids) :]
                picked = logits_TV.log_softmax(-1)[range(len(pair.target_ids)), list(pair.target_ids)]
                assert found == pytest.approx(float(picked.sum()), abs=1e-5 * len(pair.target_ids))


def test_groups_and_tags_equal_the_harness(tmp_path: Path) -> None:
    folder = model_folder("llama", tmp_path / "model")
    tasks = write_groups(write_tasks(tmp_path / "tasks", rows=6))
    (tasks / "jinja_quiz.yaml").write_text(
        json.dumps(json.loads((tasks / "jinja_quiz.yaml").read_text()) | {"tag": ["one_tag", "all_ten"]})
    )
    model = HFLM(pretrained=str(folder), dtype="float32", batch_size=16, device="cpu")
    theirs = run_harness(model, tasks, Prompting(names=("outer",)))
    options = TaskOptions(include_path=(tasks,))
    evaluate(folder, ["outer"], tmp_path / "out", World(), EvaluateSettings(options=options))
    found = json.loads((tmp_path / "out" / "results_lm_eval.json").read_text())
    assert found["group_subtasks"] == theirs["group_subtasks"]
    assert set(found["groups"]) == set(theirs["groups"]) == {"inner", "outer"}
    for name in theirs["groups"]:
        for of in ("groups", "results"):
            wanted = {key: value for key, value in theirs[of][name].items() if key != "sample_count"}
            assert found[of][name] == pytest.approx(wanted, abs=1e-6, nan_ok=True)
        for key in ("n-shot", "versions"):
            assert found[key].get(name) == theirs[key].get(name), (key, name)
        for metric, higher in theirs["higher_is_better"][name].items():
            assert found["higher_is_better"][name][metric] == higher
    summed = json.loads((tmp_path / "out" / "results.json").read_text())["groups"]
    assert summed["outer"]["tasks"] == ["jinja_quiz", "piqa_like", "blimp_like", "outer::own_task"]
    assert summed["outer"]["metrics"]["acc"]["value"] == pytest.approx(theirs["groups"]["outer"]["acc,none"])
    assert "| outer |" in (tmp_path / "out" / "results.md").read_text()
    named = [task.task.name for task in read_tasks(["one_tag"], None, None, options=options)]
    assert named == ["jinja_quiz"]
    assert len(read_tasks(["all_ten"], None, None, options=options)) == len(NAMES)


def compare_samples(task: str, theirs: dict[str, Any], ours: Any) -> None:
    """Texts and greedy hits are equal, log-probabilities within `PER_TOKEN`, metrics but for near ties."""
    samples = sorted(theirs["samples"][task], key=lambda sample: sample["doc_id"])
    assert len(samples) == len(ours.scored)
    for sample, one in zip(samples, ours.scored, strict=True):
        if ours.data.kind == "rolling":
            ((wanted,),) = sample["resps"]
            total = sum(one.log_probabilities)
            assert total == pytest.approx(wanted, abs=PER_TOKEN * max(1, sum(one.target_tokens)))
            continue
        assert [tuple(pair) for pair in sample["arguments"]] == one.example.pairs, task
        for (wanted, greedy), found, hit, tokens in zip(
            (response[0] for response in sample["resps"]),
            one.log_probabilities, one.greedy, one.target_tokens, strict=True,
        ):  # fmt: skip
            assert found == pytest.approx(wanted, abs=PER_TOKEN * tokens), task
            assert hit == greedy


def compare_metrics(task: str, theirs: dict[str, Any], output: Path) -> None:
    """Everything in results_lm_eval.json that the harness reports as well has its number."""
    found = json.loads((output / "results_lm_eval.json").read_text())
    for key, wanted in theirs["results"][task].items():
        if "_stderr" in key:
            is_resampled = key.split("_stderr")[0] in ("perplexity", "f1", "mcc")
            if not is_resampled and wanted != "N/A":
                assert found["results"][task][key] == pytest.approx(wanted, rel=1e-3, abs=1e-6), (task, key)
        elif isinstance(wanted, float):
            assert found["results"][task][key] == pytest.approx(wanted, rel=1e-4, abs=1e-5), (task, key)
        else:
            assert found["results"][task][key] == wanted, (task, key)
    for key in ("n-shot", "n-samples", "versions"):
        assert found[key][task] == theirs[key][task], key
    for metric, higher in theirs["higher_is_better"][task].items():
        assert found["higher_is_better"][task][metric] == higher


def compare_files(theirs: dict[str, Any], prompting: Prompting, folder: Path) -> None:
    """The samples files have the harness's keys, texts and hashes."""
    tracker = EvaluationTracker(output_path=str(folder / "theirs"))
    tracker.general_config_tracker.log_experiment_args("hf", "pretrained=x", "", "", False)
    results = copy.copy(theirs)
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    hashes = json.loads((folder / "out" / "results_lm_eval.json").read_text())["task_hashes"]
    for task in prompting.names:
        tracker.save_results_samples(task, samples[task])
        (path,) = (folder / "theirs").rglob(f"samples_{task}_*.jsonl")
        wanted = sorted(map(json.loads, path.read_text("utf-8").splitlines()), key=lambda one: one["doc_id"])
        text = (folder / "out" / f"samples_{task}.jsonl").read_text("utf-8")
        found = [json.loads(line) for line in text.splitlines()]
        for theirs_one, ours_one in zip(wanted, found, strict=True):
            assert list(ours_one) == list(theirs_one) or set(ours_one) == set(theirs_one)
            for key in ("doc_id", "doc", "target", "arguments", "filter", "doc_hash", "prompt_hash",
                        "target_hash"):  # fmt: skip
                assert ours_one[key] == theirs_one[key], (task, key)
            assert sorted(ours_one["metrics"]) == sorted(theirs_one["metrics"])
            assert _shape(ours_one["resps"]) == _shape(theirs_one["resps"])
            assert _shape(ours_one["filtered_resps"]) == _shape(theirs_one["filtered_resps"])
        assert hashes[task] == results["task_hashes"][task]


def _shape(value: Any) -> Any:
    return [_shape(one) for one in value] if isinstance(value, list) else type(value)
