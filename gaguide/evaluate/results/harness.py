"""Results in the form of lm-evaluation-harness's results file (0.4.13), for tools that read it.

It has every key of that file; a value that gaguide does not have is null. One key is added, `uninformative`:
the accuracies of each task that say nothing about the model's answers, and why.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import transformers

from gaguide.evaluate.results.groups import GroupResult, group_results
from gaguide.evaluate.results.intervals import NO_METRIC, Metric, perplexity
from gaguide.evaluate.results.metric_names import BETTER
from gaguide.evaluate.results.results import Results
from gaguide.evaluate.results.samples import task_hash
from gaguide.evaluate.results.task_results import TaskResult
from gaguide.evaluate.tasks.harness.source import FunctionReference
from gaguide.evaluate.tasks.task import Kind

_OUTPUT_TYPES: dict[Kind, str] = {"classification": "multiple_choice", "rolling": "loglikelihood_rolling"}
_UNKNOWN = (
    "git_hash", "pretty_env_info", "lm_eval_version", "upper_git_hash", "tokenizer_pad_token",
    "tokenizer_eos_token", "tokenizer_bos_token", "eot_token_id", "max_length", "system_instruction",
    "system_instruction_sha", "fewshot_as_multiturn", "chat_template", "chat_template_sha",
)  # fmt: skip


def harness_json(results: Results) -> dict[str, Any]:
    """The content of results_lm_eval.json."""
    tasks = {result.data.task.lm_eval or name: result for name, result in results.tasks.items()}
    arguments = {"pretrained": results.model, "dtype": results.settings["dtype"]}
    groups = group_results(results.tasks)
    of_groups = {name: _group_metrics(one) for name, one in groups.items()}
    summed = {name: of_groups[name] for name, one in groups.items() if one.group.aggregates}
    return {
        "results": {name: _metrics(name, result) for name, result in tasks.items()} | of_groups,
        **({"groups": summed} if summed else {}),
        "group_subtasks": {name: list(one.group.members) for name, one in groups.items()},
        "configs": {name: _config(name, result) for name, result in tasks.items()},
        "versions": {name: _version(result) for name, result in tasks.items()}
        | {name: one.group.version for name, one in groups.items()},
        "n-shot": _of_members({name: _shots(result) for name, result in tasks.items()}, groups),
        "higher_is_better": _of_members(
            {
                name: {metric: _is_higher_better(metric, result) for metric in _named_metrics(result)}
                for name, result in tasks.items()
            },
            groups,
        ),
        "uninformative": {
            name: {metric: asdict(one) for metric, one in result.uninformative.items()}
            for name, result in tasks.items()
        },
        "n-samples": {
            name: {"original": result.data.available, "effective": len(result.scored)}
            for name, result in tasks.items()
        },
        "config": {
            "model": "gaguide",
            "model_args": arguments,
            "model_dtype": results.settings["dtype"],
            "batch_size": None,
            "batch_sizes": [],
            "device": results.settings["device"],
            "limit": results.settings["limit"],
            "bootstrap_iters": 0,
            "gen_kwargs": {},
        },
        **dict.fromkeys(_UNKNOWN),
        **_prompting(results),
        "date": time.time(),
        "transformers_version": transformers.__version__,
        "task_hashes": {
            name: task_hash(result) if result.data.harness is not None else result.data.sha256 or ""
            for name, result in tasks.items()
        },
        "model_source": "gaguide",
        "model_name": results.model,
        "model_name_sanitized": results.model.replace("/", "__"),
        "total_evaluation_time_seconds": str(results.seconds["total"]),
    }


def _prompting(results: Results) -> dict[str, Any]:
    instruction = results.settings.get("system_instruction") or None
    digest = None if instruction is None else hashlib.sha256(instruction.encode("utf-8")).hexdigest()
    chat = bool(results.settings.get("apply_chat_template"))
    return {
        "system_instruction": instruction,
        "system_instruction_sha": digest,
        "fewshot_as_multiturn": chat and bool(results.settings.get("fewshot_as_multiturn")),
    }


def _of_members(values: dict[str, Any], groups: Mapping[str, GroupResult]) -> dict[str, Any]:
    """`values` by task, and by group where all its members have the same; metric by metric in mappings."""
    found = dict(values)
    for name, one in groups.items():
        known = [found[member] for member in one.group.members if member in found]
        if known and isinstance(known[0], dict):
            metrics = dict.fromkeys(metric for of in known for metric in of)
            found[name] = {
                metric: _agreed([of[metric] for of in known if metric in of]) for metric in metrics
            }
        elif (agreed := _agreed(known)) is not None:
            found[name] = agreed
    return found


def _agreed(values: Sequence[Any]) -> Any:
    return values[0] if values and all(value == values[0] for value in values) else None


def _group_metrics(found: GroupResult) -> dict[str, Any]:
    values: dict[str, Any] = {"alias": found.group.alias, "name": found.group.name}
    if found.group.aggregates:
        values["sample_len"] = found.count
    for (metric, filtered), one in found.metrics.items():
        values[f"{metric},{filtered}"] = one.value
        values[f"{metric}_stderr,{filtered}"] = "N/A" if math.isnan(one.stderr) else one.stderr
    return values


def _version(result: TaskResult) -> Any:
    harness = result.data.harness
    return "gaguide" if harness is None else harness.metadata.get("version", "Yaml")


def _named_metrics(result: TaskResult) -> dict[str, Metric]:
    """The metrics as the harness names them; a number that differs from the harness's has another name.

    Its perplexity is per example where gaguide's is per token.
    """
    metrics, kind = dict(result.metrics), result.data.kind
    if result.data.harness is not None or kind not in ("sequence_prob", "perplexity"):
        return metrics
    found = {"token_perplexity" if name == "perplexity" else name: one for name, one in metrics.items()}
    if kind == "sequence_prob":
        values = [one.value for one in result.scored]
        finite = all(map(math.isfinite, values))
        found["perplexity"] = perplexity(values, [1] * len(values)) if finite else NO_METRIC
        if "greedy_acc" in found:
            found["acc"] = found.pop("greedy_acc")
    return found


def _is_higher_better(metric: str, result: TaskResult) -> bool:
    """The file has a Boolean for every metric, also where a study would not call either direction better."""
    for one in result.data.harness.metrics if result.data.harness is not None else ():
        if one.name == metric:
            return one.higher_is_better
    return BETTER.get(metric) == "high" or metric == "answered"


def _shots(result: TaskResult) -> int:
    if result.data.harness is not None:
        return result.data.harness.num_fewshot or 0
    fewshot = result.data.task.fewshot
    return fewshot.count if fewshot is not None else 0


def _metrics(name: str, result: TaskResult) -> dict[str, Any]:
    harness = result.data.harness
    alias, filtered = (name, "none") if harness is None else (harness.alias, harness.filter_name)
    found: dict[str, Any] = {"name": name, "alias": alias, "sample_len": len(result.scored)}
    for metric_name, metric in _named_metrics(result).items():
        found[f"{metric_name},{filtered}"] = metric.value
        error = "N/A" if math.isnan(metric.stderr) else metric.stderr
        found[f"{metric_name}_stderr,{filtered}"] = error
    return found


def _config(name: str, result: TaskResult) -> dict[str, Any]:
    task, harness = result.data.task, result.data.harness
    if harness is not None:
        return {**_plain(dict(harness.tree)), "num_fewshot": harness.num_fewshot}
    return {
        "task": name,
        "dataset_path": result.data.source,
        "description": task.description,
        "output_type": _OUTPUT_TYPES.get(result.data.kind, "loglikelihood"),
        "target_delimiter": task.delimiter,
        "num_fewshot": _shots(result),
        "metric_list": [{"metric": metric} for metric in _named_metrics(result)],
        "repeats": 1,
        "metadata": {"summary": task.summary},
    }


def _plain(value: Any) -> Any:
    """A task file's value as JSON; functions by their names."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, FunctionReference):
        return f"!function {value.name}"
    return value if value is None or isinstance(value, (str, int, float)) else str(value)
