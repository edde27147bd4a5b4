"""Results in the form of lm-evaluation-harness's results file (0.4.13), for tools that read it.

It has every key of that file; a value that gaguide does not have is null. Of its own it has `uninformative`:
the accuracies of each task that say nothing about the model's answers, and why.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from typing import Any

import transformers

from gaguide.evaluate.results.metric_names import BETTER
from gaguide.evaluate.results.results import Results, TaskResult
from gaguide.evaluate.tasks.task import Kind

_OUTPUT_TYPES: dict[Kind, str] = {"classification": "multiple_choice"}
_UNKNOWN = (
    "git_hash", "pretty_env_info", "lm_eval_version", "upper_git_hash", "tokenizer_pad_token",
    "tokenizer_eos_token", "tokenizer_bos_token", "eot_token_id", "max_length", "system_instruction",
    "system_instruction_sha", "fewshot_as_multiturn", "chat_template", "chat_template_sha",
)  # fmt: skip


def harness_json(results: Results) -> dict[str, Any]:
    """The content of results_lm_eval.json."""
    tasks = {result.data.task.lm_eval or name: result for name, result in results.tasks.items()}
    arguments = {"pretrained": results.model, "dtype": results.settings["dtype"]}
    return {
        "results": {name: _metrics(name, result) for name, result in tasks.items()},
        "group_subtasks": {},
        "configs": {name: _config(name, result) for name, result in tasks.items()},
        "versions": {name: "gaguide" for name in tasks},
        "n-shot": {name: _shots(result) for name, result in tasks.items()},
        "higher_is_better": {
            name: {metric: _is_higher_better(metric) for metric in result.metrics}
            for name, result in tasks.items()
        },
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
        "date": time.time(),
        "transformers_version": transformers.__version__,
        "task_hashes": {name: result.data.sha256 or "" for name, result in tasks.items()},
        "model_source": "gaguide",
        "model_name": results.model,
        "model_name_sanitized": results.model.replace("/", "__"),
        "total_evaluation_time_seconds": str(results.seconds["total"]),
    }


def _is_higher_better(metric: str) -> bool:
    """The file has a Boolean for every metric, also where a study would not call either direction better."""
    return BETTER.get(metric) == "high" or metric == "answered"


def _shots(result: TaskResult) -> int:
    fewshot = result.data.task.fewshot
    return fewshot.count if fewshot is not None else 0


def _metrics(name: str, result: TaskResult) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name, "alias": name, "sample_len": len(result.scored)}
    for metric_name, metric in result.metrics.items():
        found[f"{metric_name},none"] = metric.value
        found[f"{metric_name}_stderr,none"] = "N/A" if math.isnan(metric.stderr) else metric.stderr
    return found


def _config(name: str, result: TaskResult) -> dict[str, Any]:
    task = result.data.task
    return {
        "task": name,
        "dataset_path": result.data.source,
        "description": "",
        "output_type": _OUTPUT_TYPES.get(result.data.kind, "loglikelihood"),
        "target_delimiter": task.delimiter,
        "num_fewshot": _shots(result),
        "metric_list": [{"metric": metric} for metric in result.metrics],
        "repeats": 1,
        "metadata": {"description": task.description},
    }
