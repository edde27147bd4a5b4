"""A model in memory has the numbers of its saved folder, and is as before afterwards."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from gaguide.distributed import World
from gaguide.errors import UserError
from gaguide.evaluate import EvaluateSettings, Results, evaluate, evaluate_model
from gaguide.guidance import Assignment, FirstToken, GuidancePlan, guide
from gaguide.interventions import ZeroOutput, intervene
from tests.support.patience import patience
from tests.support.ranks import REPOSITORY, launch_command, rank_environment

_VOLATILE = ("model", "identity", "seconds", "resumed")


def _load(folder: Path, kind: Any = AutoModelForCausalLM, **options: Any) -> Any:
    return kind.from_pretrained(folder, **options)


@pytest.fixture(scope="module")
def tasks(demonstrated: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Rows that share a long prefix, completions with greedy comparison, and generated numbers."""
    folder = tmp_path_factory.mktemp("tasks")
    numbers = folder / "sums_numeric.jsonl"
    numbers.write_text(
        "".join(json.dumps({"prompt": f"{n} + 1 =", "number": n + 1}) + "\n" for n in range(4))
    )
    completions = folder / "ends_sequence_prob.jsonl"
    completions.write_text(
        "".join(
            json.dumps({"prompt": f"After {n} comes", "completion": f" {n + 1}."}) + "\n" for n in range(5)
        )
    )
    return [str(demonstrated), str(numbers), str(completions)]


@pytest.fixture(scope="module")
def of_folder(gpt2_folder: Path, tasks: list[str]) -> Results:
    return evaluate(gpt2_folder, tasks, None, World(), EvaluateSettings())


def _scores(results: Results) -> dict[str, list[tuple[float, ...]]]:
    return {name: [one.log_probabilities for one in task.scored] for name, task in results.tasks.items()}


def test_records_are_those_of_the_saved_folder_to_the_last_bit(
    gpt2_folder: Path, tasks: list[str], of_folder: Results, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(gpt2_folder)
    found = evaluate_model(_load(gpt2_folder), tokenizer, tasks, output=tmp_path / "out", name="mine")
    wanted, record = of_folder.to_json(), found.to_json()
    assert found.model == "mine"
    for name in (*record.keys() - set(_VOLATILE), "tasks"):
        assert repr(record[name]) == repr(wanted[name]), name
    assert _scores(found) == _scores(of_folder)
    assert found.tokens["kept_prefixes"] and any(task.uninformative for task in found.tasks.values())
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written["tasks"].keys() == wanted["tasks"].keys() and written["identity"] == record["identity"]
    with pytest.raises(UserError, match="holds results already"):
        evaluate_model(_load(gpt2_folder), tokenizer, tasks, output=tmp_path / "out")


def test_a_guided_wrapped_model_in_training_has_the_same_numbers_and_is_left_as_it_was(
    gpt2_folder: Path, tasks: list[str], of_folder: Results
) -> None:
    model, tokenizer = _load(gpt2_folder).train(), AutoTokenizer.from_pretrained(gpt2_folder)
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    children = dict(model.named_modules())
    plan = GuidancePlan((Assignment(FirstToken(), (1,)),))
    wrapped: Any = torch.compile(model)
    ids = torch.arange(12)[None]
    with guide(model, plan) as guidance, torch.autocast("cpu", torch.bfloat16):
        model(input_ids=ids, use_cache=False)
        before = guidance.attention()
        torch.manual_seed(5)
        found = evaluate_model(wrapped, tokenizer, tasks)
        drawn = torch.rand(3)
        assert guidance.enabled and guidance.attention() == before
        hooks = [len(module._forward_hooks) for module in model.modules()]
        assert sum(hooks) > 0
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))
    assert _scores(found) == _scores(of_folder)
    assert modes == [module.training for module in model.modules()]
    assert children == dict(model.named_modules())


def test_interventions_act_and_are_part_of_the_identity(
    gpt2_folder: Path, tasks: list[str], of_folder: Results
) -> None:
    model, tokenizer = _load(gpt2_folder), AutoTokenizer.from_pretrained(gpt2_folder)
    tasks = [tasks[0], tasks[2]]
    plain = evaluate_model(model, tokenizer, tasks)
    with intervene(model, ZeroOutput(((0, 0), (1, 1)))):
        found = evaluate_model(model, tokenizer, tasks)
    for layer, head in ((0, 0), (1, 1)):  # the same by weights: nothing of the head reaches its projection
        with torch.no_grad():
            model.transformer.h[layer].attn.c_proj.weight[head * 16 : (head + 1) * 16] = 0
    wanted = evaluate_model(model, tokenizer, tasks)
    assert found.identity != plain.identity != wanted.identity and "interventions" in (found.identity or {})
    for name, scores in _scores(wanted).items():
        for one, other, unchanged in zip(scores, _scores(found)[name], _scores(of_folder)[name], strict=True):
            assert other == pytest.approx(one, abs=1e-4)
            assert other != pytest.approx(unchanged, abs=1e-2)


def test_hooks_on_the_model_itself_run(gpt2_folder: Path, tasks: list[str]) -> None:
    model, tokenizer = _load(gpt2_folder), AutoTokenizer.from_pretrained(gpt2_folder)

    def uniform(module: Any, args: Any, out: Any) -> Any:
        out.logits = torch.zeros_like(out.logits)
        return out

    handle = model.register_forward_hook(uniform)
    results = evaluate_model(model, tokenizer, tasks[2])
    (scored,) = {
        one.log_probabilities[0] / one.target_tokens[0] for one in results.tasks["ends_sequence_prob"].scored
    }
    assert scored == pytest.approx(-torch.tensor(float(model.config.vocab_size)).log().item())
    with pytest.raises(UserError, match="task sums: generates text"):
        evaluate_model(model, tokenizer, tasks)
    assert handle.id in model._forward_hooks


def test_an_adapter_counts(gpt2_folder: Path, tasks: list[str]) -> None:
    peft = pytest.importorskip("peft")
    tokenizer = AutoTokenizer.from_pretrained(gpt2_folder)
    adapted = peft.get_peft_model(
        _load(gpt2_folder), peft.LoraConfig(target_modules=["c_attn"], init_lora_weights=False)
    )
    found = _scores(evaluate_model(adapted, tokenizer, tasks[2]))["ends_sequence_prob"]
    wanted = _scores(evaluate_model(adapted.merge_and_unload(), tokenizer, tasks[2]))["ends_sequence_prob"]
    assert all(one == pytest.approx(other, abs=1e-3) for one, other in zip(found, wanted, strict=True))
    prompted = peft.get_peft_model(
        _load(gpt2_folder), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    )
    with pytest.raises(UserError, match="learned tokens before the prompt"):
        evaluate_model(prompted, tokenizer, tasks[2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda given: given | {"model": torch.nn.Linear(2, 2)}, "must be a transformers model"),
        (lambda given: given | {"model": _load(given["folder"], AutoModel)}, "not a causal language model"),
        (lambda given: given | {"model": given["model"].to("meta")}, "have no values"),
        (lambda given: given | {"model": given["model"].double()}, "must be in fp32, bf16, fp16"),
        (lambda given: given | {"tokenizer": "gpt2"}, "must be a tokenizer of transformers, but is a str"),
        (lambda given: given | {"settings": EvaluateSettings(dtype="bf16")}, "in memory is in fp32"),
        (lambda given: given | {"settings": EvaluateSettings(limit=0)}, r"^limit = 0: must be positive"),
        (lambda given: given | {"settings": EvaluateSettings(deepspeed=Path("x.json"))}, "cannot partition"),
        (lambda given: given | {"tasks": "no-such-task"}, "no-such-task"),
        (lambda given: given | {"tasks": []}, r"^tasks: must name a task"),
    ],
)
def test_mistakes_are_refused(
    gpt2_folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]], message: str
) -> None:
    model, tokenizer = _load(gpt2_folder), AutoTokenizer.from_pretrained(gpt2_folder)
    given = change({"folder": gpt2_folder, "model": model, "tokenizer": tokenizer, "tasks": ["demo"]})
    del given["folder"]
    with pytest.raises(UserError, match=message):
        evaluate_model(**given)


def test_a_model_in_bf16_is_evaluated_in_bf16(gpt2_folder: Path, tasks: list[str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(gpt2_folder)
    found = evaluate_model(_load(gpt2_folder, dtype=torch.bfloat16), tokenizer, tasks[2])
    wanted = evaluate(gpt2_folder, tasks[2:], None, World(), EvaluateSettings(dtype="bf16"))
    assert found.settings["dtype"] == "bf16" and _scores(found) == _scores(wanted)


@pytest.mark.slow
@pytest.mark.processes
def test_ranks_share_the_examples_and_have_the_folders_numbers(gpt2_folder: Path, tmp_path: Path) -> None:
    script = REPOSITORY / "tests" / "support" / "memory_ranks.py"
    command = launch_command(script, [str(gpt2_folder), str(tmp_path / "out")], 2, "torchrun")
    done = subprocess.run(
        command, env=rank_environment(), capture_output=True, text=True, timeout=patience(200), check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    wanted = evaluate(gpt2_folder, ["synthetic-order"], None, World(), EvaluateSettings()).to_json()
    assert found["world_size"] == 2
    assert found["tasks"] == json.loads(json.dumps(wanted["tasks"]))
