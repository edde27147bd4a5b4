"""The samples files of lm-evaluation-harness (`--log_samples`, samples_TASK_DATE.jsonl) as examples.

Read as 0.4.13 writes them: `arguments` holds the requests (context, continuation), `filtered_resps` their
log-probabilities as text, and each name in `metrics` is a key with the example's value. Values that are
log-probabilities there (perplexities) become losses: `loss` of a completion in nats, `word_loss` of a
document in nats per word, `bits_per_byte`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gaguide.errors import UserError
from gaguide.evaluate.results.answers import Uninformative, class_answers, doubt_sentences, uninformative
from gaguide.evaluate.results.intervals import Groups, clusters, proportion
from gaguide.evaluate.results.metric_names import Doubt
from gaguide.evaluate.results.numbers import log_sum_exp
from gaguide.evaluate.results.outcomes import TaskExamples
from gaguide.evaluate.tasks.example import Example, example_key

_NAME = re.compile(r"samples_(?P<task>.+)_(?P<date>\d{4}-\d\d-\d\dT[\d.:-]+)")


def samples_task(path: Path) -> tuple[str, str] | None:
    """(task, date) in the name of a samples file; None where it is not one. Dates sort as text."""
    found = _NAME.fullmatch(path.stem) if path.suffix == ".jsonl" else None
    return None if found is None else (found["task"], found["date"])


@dataclass(frozen=True)
class Samples:
    """One task's samples."""

    examples: TaskExamples
    """The questions and outcomes."""
    doubts: Mapping[str, Doubt]
    """Metric → why that accuracy says nothing about the model's answers."""
    warnings: tuple[str, ...]
    """The same in sentences."""


def read_samples(path: Path, task: str, group: str | None = None) -> Samples:
    """The samples of one file, with the metrics of all its filters.

    The first filter's metrics have their own names, those of a further one end in `,FILTER`. group: field of
    the documents that names their contrast set. Raises `UserError` for a line that is not a sample, or whose
    document lacks the field.
    """
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for line, sample in _samples(path):
        row = _row(sample, path, line, group)
        rows.setdefault(str(sample.get("filter")), {})[row["id"]] = row
    if not rows:
        raise UserError.of(str(path), "contains no sample", "run lm-eval with --log_samples")
    first, *further = rows
    found = list(rows[first].values())
    for name in further:
        for row in found:
            other = rows[name].get(row["id"], {"outcomes": {}})["outcomes"]
            row["outcomes"] |= {f"{metric},{name}": value for metric, value in other.items()}
    names = dict.fromkeys(name for row in found for name in row["outcomes"])
    ids, groups = _ids(found), clusters(_ids(found), [row["group"] for row in found])
    examples = TaskExamples(
        tuple(ids),
        tuple("\n".join(dict.fromkeys(row["prompts"])) for row in found),
        tuple(_key(row) for row in found),
        {name: np.asarray([row["outcomes"].get(name, math.nan) for row in found]) for name in names},
        groups,
        _weights(found),
        tuple(row["answer_text"] for row in found),
        tuple(row["prediction"] for row in found),
    )
    accuracy, doubt = _doubt(found, groups)
    doubts = {} if doubt is None else {"acc": doubt}
    sentences = doubt_sentences(task, {"acc": accuracy}, doubts)
    return Samples(examples, {metric: one.reason for metric, one in doubts.items()}, tuple(sentences))


def _doubt(rows: Sequence[Mapping[str, Any]], groups: Groups) -> tuple[float, Uninformative | None]:
    """The accuracy, and why it says nothing about the model's answers; as in an evaluation by gaguide."""
    answers = [row.get("answers") or [] for row in rows]
    chosen = [row.get("predicted") for row in rows]
    if not all(answers) or any(one is None for one in chosen):
        return math.nan, None
    examples = [
        Example(
            row["id"], tuple(row["prompts"]), tuple(row["continuations"]), own[0],
            other_answers=tuple(own[1:]), is_zipped=row["further"][0],
        )
        for row, own in zip(rows, answers, strict=True)
    ]  # fmt: skip
    predicted = [one for one in chosen if one is not None]
    accuracy = proportion([at in own for at, own in zip(predicted, answers, strict=True)], groups)
    return accuracy.value, uninformative(class_answers(examples, predicted), accuracy)


def _ids(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The documents' own ids where each has another one, else their numbers."""
    own = [str(row["own_id"]) for row in rows]
    is_known = all(isinstance(row["own_id"], (str, int)) for row in rows) and len(set(own)) == len(own)
    return own if is_known else [row["id"] for row in rows]


def _key(row: Mapping[str, Any]) -> str:
    always = (row["prompts"], row["continuations"], row["answer_index"], row["answer"], ())
    further = row.get("further", ())
    return example_key(row["kind"], *always, *(further if any(further) else ()))


def _weights(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    names = dict.fromkeys(name for row in rows for name in row["weights"])
    return {name: np.asarray([row["weights"].get(name, 0.0) for row in rows], float) for name in names}


def _samples(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                sample = json.loads(line)
            except ValueError:
                sample = None
            if not isinstance(sample, dict):
                raise _fault(path, number, "is not a JSON object")
            yield number, sample


def _row(sample: Mapping[str, Any], path: Path, line: int, group: str | None) -> dict[str, Any]:
    """A sample's question, answer, prediction and outcomes.

    The question is an `example_key`: examples of both programs that ask the same have the same key.
    """
    try:
        requests, responses = _requests(sample["arguments"]), list(sample["filtered_resps"])
        metrics = {name: sample[name] for name in sample["metrics"]}
        target = str(sample["target"])
        if group is not None and group not in sample["doc"]:
            problem = f"{path}:{line}: the document does not have such a field"
            raise UserError.of("--group", problem, "give one of " + ", ".join(sample["doc"]), group)
        row: dict[str, Any] = {
            "id": str(sample["doc_id"]), "group": None if group is None else str(sample["doc"][group]),
            "outcomes": _outcomes(metrics), "weights": {}, "answer_text": target, "prediction": None,
            "prompts": [one[0] for one in requests], "continuations": [], "answer_index": None,
            "answer": None, "own_id": sample["doc"].get("id"),
        }  # fmt: skip
    except KeyError as error:
        raise _fault(path, line, f"lacks {str(error.args[0])!r}") from None
    except (TypeError, ValueError, AttributeError, IndexError):
        raise _fault(path, line, "is not a sample of lm-evaluation-harness") from None
    texts = [one[1] if len(one) > 1 else "" for one in requests]
    if not requests or not all(isinstance(text, str) for text in row["prompts"]):
        raise _fault(path, line, "is not a sample of lm-evaluation-harness")
    if not all(isinstance(text, str) for text in texts):  # generated: the second argument is its settings
        prediction = str(responses[0]) if responses else None
        return row | {"kind": "generated", "answer": target, "prediction": prediction}
    scores = [_log_probability(one) for one in responses]
    if not all(map(math.isfinite, scores)):  # the harness counts such an example as right or wrong
        row["outcomes"] = dict.fromkeys(row["outcomes"], math.nan)
    if len(texts) > 1:
        return row | _choice(row, texts, scores, target, "acc_mutual_info" in metrics)
    if len(requests[0]) > 1:
        outcomes = {("greedy_acc" if name == "acc" else name): one for name, one in row["outcomes"].items()}
        row["outcomes"] = {"loss": -scores[0]} | outcomes
        return row | {"kind": "sequence_prob", "continuations": texts, "answer_text": texts[0]}
    text = {"prompts": [""], "continuations": row["prompts"]}
    return row | {"kind": "rolling"} | text | _per_unit(metrics)


def _outcomes(metrics: Mapping[str, Any]) -> dict[str, float]:
    numbers = {name: float(value) for name, value in metrics.items() if isinstance(value, (int, float))}
    return {name: value for name, value in numbers.items() if name != "perplexity"}


def _per_unit(metrics: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Outcomes and weights of a document, which the harness logs as (log-probability, words or bytes)."""
    units = {"word_loss": ("word_perplexity", 1.0), "bits_per_byte": ("bits_per_byte", math.log(2))}
    found = {}
    for name, (logged, nats) in units.items():
        value = metrics.get(logged, metrics.get("byte_perplexity") if name == "bits_per_byte" else None)
        if isinstance(value, (list, tuple)) and len(value) == 2 and value[1]:
            found[name] = -float(value[0]) / float(value[1]) / nats, float(value[1])
    return {
        "outcomes": {name: value for name, (value, _) in found.items()},
        "weights": {name: count for name, (_, count) in found.items()},
    }


def _choice(
    row: Mapping[str, Any], texts: Sequence[str], scores: Sequence[float], target: str, has_prior: bool
) -> dict[str, Any]:
    prior: Sequence[str] = ()
    if has_prior:  # the second half of the requests is without the context
        half = len(texts) // 2
        texts, prior, scores = texts[:half], texts[half:], scores[:half]
    prompts = row["prompts"][: len(texts)]
    several = len(set(prompts)) > 1  # one context per choice, as in WinoGrande
    answers = [] if several else _answers(target, len(texts))
    shown = [context + text for context, text in zip(prompts, texts, strict=True)] if several else texts
    known, outcomes = all(map(math.isfinite, scores)), dict(row["outcomes"])
    if answers:
        right = [scores[at] for at in answers]
        outcomes["class_loss"] = log_sum_exp(scores) - log_sum_exp(right) if known else math.nan
    return {
        "kind": "classification",
        "prompts": prompts if several else prompts[:1],
        "continuations": list(texts),
        "answer_index": answers[0] if answers else None,
        "further": (several, answers[1:], (), prior),
        # The harness does not say which of several contexts is right.
        "answer_text": texts[0] if several else " or ".join(shown[at] for at in answers) or target,
        "answers": answers,
        "predicted": scores.index(max(scores)) if known else None,
        "prediction": shown[scores.index(max(scores))] if known else None,
        "outcomes": outcomes,
    }


def _answers(target: str, choices: int) -> list[int]:
    """Indices of the right choices; empty where the target does not name them by number."""
    found = [int(text) for text in re.findall(r"\d+", target)]
    is_numbers = re.fullmatch(r"\d+|\[\d+(, \d+)*\]", target) is not None
    return found if is_numbers and all(one < choices for one in found) else []


def _requests(arguments: Any) -> list[list[Any]]:
    """Each request's arguments in order; a dictionary in a file, a list in memory."""
    listed = list(arguments.values()) if isinstance(arguments, Mapping) else list(arguments)
    return [list(one.values()) if isinstance(one, Mapping) else list(one) for one in listed]


def _log_probability(response: Any) -> float:
    value = response[0] if isinstance(response, (list, tuple)) else response
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _fault(path: Path, line: int, problem: str) -> UserError:
    return UserError.of(f"{path}:{line}", problem, "give a file that lm-eval --log_samples wrote")
