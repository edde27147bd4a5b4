"""Examples in the form of lm-evaluation-harness's `--log_samples` files (0.4.13), a line each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gaguide.evaluate.results.harness_items import example_items, raw_results
from gaguide.evaluate.results.metrics import ScoredExample
from gaguide.evaluate.results.task_results import TaskResult
from gaguide.evaluate.tasks.harness.config import HarnessTask
from gaguide.evaluate.tasks.harness.fields import Fields

_WITHOUT_TEXTS = ("perplexity", "near_cue")
"""Kinds whose examples are tokens, or have a score for each part of a text."""


def samples_file(task: str) -> str:
    """Name of a task's file in the output folder."""
    return f"samples_{task.replace('/', '_')}.jsonl"


def sample_lines(result: TaskResult) -> Iterator[str]:
    """The lines of a task's file; none where its examples are not texts."""
    if result.data.kind not in _WITHOUT_TEXTS:
        for at, one in enumerate(result.scored):
            yield json.dumps(_sample(result, at, one), ensure_ascii=False, default=_plain) + "\n"


def task_hash(result: TaskResult) -> str:
    """The harness's hash of all documents, first prompts and targets of one of its tasks."""
    hashes = []
    for at, one in enumerate(result.scored):
        sample = _sample(result, at, one)
        hashes.append(sample["doc_hash"] + sample["prompt_hash"] + sample["target_hash"])
    return _hash("".join(hashes))


def _sample(result: TaskResult, at: int, one: ScoredExample) -> dict[str, Any]:
    harness = result.data.harness
    arguments = _arguments(result, one)
    document = _document(one) if one.example.document is None else dict(one.example.document)
    target = _target(one)
    if harness is not None:
        fields = Fields(tuple(document), harness.doc_to_choice is not None)
        target = fields.target(document, harness.doc_to_target)
    metrics = _items(harness, one)
    responses = _responses(result, one)
    return {
        "doc_id": at,
        "doc": document,
        "target": str(target),
        "arguments": {
            f"gen_args_{nth}": {f"arg_{place}": text for place, text in enumerate(texts)}
            for nth, texts in enumerate(arguments)
        },
        "resps": [[response] for response in responses],
        "filtered_resps": responses,
        "filter": "none" if harness is None else harness.filter_name,
        "metrics": list(metrics),
        "doc_hash": _hash(json.dumps(document, indent=2, default=_plain, ensure_ascii=False)),
        "prompt_hash": _hash(arguments[0][0]),
        "target_hash": _hash(str(target)),
        **metrics,
    }


def _arguments(result: TaskResult, one: ScoredExample) -> list[tuple[str, ...]]:
    if result.data.kind == "rolling":
        return [(one.example.continuations[0],)]
    if result.data.kind == "numeric":
        return [(one.example.prompts[0],)]
    return list(one.example.pairs)


def _responses(result: TaskResult, one: ScoredExample) -> list[Any]:
    """Log-likelihood and greediness of each pair, as the texts that the harness writes."""
    if result.data.kind == "numeric":
        return [str(one.text)]
    if result.data.harness is not None and result.data.kind == "rolling":
        return [str(total) for total in raw_results(result.data.harness, one)]
    greedy: Sequence[bool | None] = one.greedy or [None] * len(one.log_probabilities)
    return [[str(value), str(hit)] for value, hit in zip(one.log_probabilities, greedy, strict=True)]


def _items(harness: HarnessTask | None, one: ScoredExample) -> Mapping[str, Any]:
    if not one.finite:
        return {}
    if harness is not None:
        return example_items(harness, one)
    if one.predicted is not None:
        return {"acc": float(bool(one.correct)), "acc_norm": float(bool(one.correct_norm))}
    if one.example.number is not None:
        return {"acc": float(one.correct_number)}
    found: dict[str, Any] = {"value": one.value}
    if len(one.greedy) == 1:
        found = {"perplexity": one.log_probabilities[0], "acc": int(one.greedy[0])}
    return found


def _document(one: ScoredExample) -> dict[str, Any]:
    """The columns of an example of gaguide's own tasks."""
    example = one.example
    found: dict[str, Any] = {"id": example.id, "prompt": example.prompts[0]}
    found |= {"other_prompt": example.prompts[1]} if len(example.prompts) == 2 else {}
    if example.number is not None:
        return found | {"number": example.number}
    if len(example.continuations) == 1:
        return found | {"completion": example.continuations[0]}
    return found | {"classes": list(example.continuations), "answer_index": example.answer_index}


def _target(one: ScoredExample) -> Any:
    example = one.example
    if example.number is not None:
        return example.number_text
    return example.continuations[0] if len(example.continuations) == 1 else example.answer_index


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _plain(value: Any) -> Any:
    """Values of documents that JSON lacks, as the harness writes them."""
    if isinstance(value, np.generic):
        return value.item()
    return list(value) if isinstance(value, set) else str(value)
