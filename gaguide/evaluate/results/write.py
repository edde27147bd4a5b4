"""The files of an evaluation: results.json, results_lm_eval.json and examples.parquet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gaguide.evaluate.results.earlier import merge_examples, merge_harness, merge_results, read_earlier
from gaguide.evaluate.results.harness import harness_json
from gaguide.evaluate.results.markdown import results_markdown
from gaguide.evaluate.results.metrics import ScoredExample
from gaguide.evaluate.results.results import Results
from gaguide.evaluate.results.samples import sample_lines, samples_file
from gaguide.evaluate.tasks.task import Kind
from gaguide.files import replacing, without_nonfinite, write_json, write_text
from gaguide.log import run_files


def write_results(results: Results, output: Path) -> None:
    """Write the files into `output`, with the other tasks that they hold (see `check_earlier`).

    results.json is last, so that a first one exists only where all do.
    """
    output.mkdir(parents=True, exist_ok=True)
    earlier = read_earlier(output)
    examples, harness = output / "examples.parquet", output / "results_lm_eval.json"
    table = _examples_table(results)
    if earlier is not None:
        table = merge_examples(examples, table, list(results.tasks))
    with replacing(examples) as temporary:
        pq.write_table(table, temporary)
    found = harness_json(results)
    write_json(harness, found if earlier is None else merge_harness(harness, found))
    merged = without_nonfinite(merge_results(earlier, results.to_json()))
    write_text(output / "results.md", results_markdown(merged))
    if results.settings.get("log_samples"):
        for name, result in results.tasks.items():
            if lines := "".join(sample_lines(result)):
                write_text(output / samples_file(name), lines)
    write_json(output / run_files.RESULTS, merged)


_COLUMNS: Mapping[str, tuple[pa.DataType, Callable[[str, Kind, ScoredExample], Any]]] = {
    "task": (pa.string(), lambda task, kind, one: task),
    "id": (pa.string(), lambda task, kind, one: one.example.id),
    "kind": (pa.string(), lambda task, kind, one: kind),
    "group": (pa.string(), lambda task, kind, one: one.example.group),
    "part": (pa.string(), lambda task, kind, one: one.example.part),
    "content": (pa.string(), lambda task, kind, one: one.example.key(kind)),
    "prompt": (pa.string(), lambda task, kind, one: one.example.prompts[0] if one.example.prompts else None),
    "continuations": (pa.list_(pa.string()), lambda task, kind, one: list(one.example.continuations)),
    "answer_index": (pa.int32(), lambda task, kind, one: one.example.answer_index),
    "other_answers": (pa.list_(pa.int32()), lambda task, kind, one: list(one.example.other_answers)),
    "log_probabilities": (pa.list_(pa.float64()), lambda task, kind, one: list(one.log_probabilities)),
    "continuation_tokens": (pa.list_(pa.int32()), lambda task, kind, one: list(one.target_tokens)),
    "predicted": (pa.int32(), lambda task, kind, one: one.predicted),
    "predicted_norm": (pa.int32(), lambda task, kind, one: one.predicted_norm),
    "predicted_bytes": (pa.int32(), lambda task, kind, one: one.predicted_bytes),
    "predicted_mutual_info": (pa.int32(), lambda task, kind, one: one.predicted_mutual_info),
    "correct": (pa.bool_(), lambda task, kind, one: one.correct),
    "greedy": (pa.bool_(), lambda task, kind, one: all(one.greedy) if one.greedy else None),
    "margin": (pa.float64(), lambda task, kind, one: one.margin),
    "value": (pa.float64(), lambda task, kind, one: one.value),
    "finite": (pa.bool_(), lambda task, kind, one: one.finite),
    "tokens_cut": (pa.list_(pa.int32()), lambda task, kind, one: list(one.tokens_cut)),
    "demonstrations": (pa.int32(), lambda task, kind, one: len(one.example.demonstration_ends)),
    "bands": (pa.list_(pa.string()), lambda task, kind, one: list(one.bands)),
    "text": (pa.string(), lambda task, kind, one: one.text),
    "number": (pa.float64(), lambda task, kind, one: one.number),
    "answer": (pa.float64(), lambda task, kind, one: one.example.number),
}
"""Column of examples.parquet → its type, and its value for an example of a task of some kind."""


def _examples_table(results: Results) -> pa.Table:
    scored = [
        (name, result.data.kind, one) for name, result in results.tasks.items() for one in result.scored
    ]
    return pa.table(
        {name: pa.array([value(*row) for row in scored], kind) for name, (kind, value) in _COLUMNS.items()}
    )
