"""The files of an evaluation: results.json, results_lm_eval.json and examples.parquet."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from gaguide.evaluate.results.earlier import (
    RESULTS_FILE,
    merge_examples,
    merge_harness,
    merge_results,
    read_earlier,
)
from gaguide.evaluate.results.harness import harness_json
from gaguide.evaluate.results.markdown import results_markdown
from gaguide.evaluate.results.results import Results
from gaguide.evaluate.results.samples import sample_lines, samples_file
from gaguide.files import replacing, without_nonfinite, write_json, write_text


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
    write_json(output / RESULTS_FILE, merged)


_SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("id", pa.string()),
        ("kind", pa.string()),
        ("group", pa.string()),
        ("part", pa.string()),
        ("content", pa.string()),
        ("prompt", pa.string()),
        ("continuations", pa.list_(pa.string())),
        ("answer_index", pa.int32()),
        ("other_answers", pa.list_(pa.int32())),
        ("log_probabilities", pa.list_(pa.float64())),
        ("continuation_tokens", pa.list_(pa.int32())),
        ("predicted", pa.int32()),
        ("predicted_norm", pa.int32()),
        ("predicted_bytes", pa.int32()),
        ("predicted_mutual_info", pa.int32()),
        ("correct", pa.bool_()),
        ("greedy", pa.bool_()),
        ("margin", pa.float64()),
        ("value", pa.float64()),
        ("finite", pa.bool_()),
        ("tokens_cut", pa.list_(pa.int32())),
        ("demonstrations", pa.int32()),
        ("bands", pa.list_(pa.string())),
        ("text", pa.string()),
        ("number", pa.float64()),
        ("answer", pa.float64()),
    ]
)
"""Columns of examples.parquet."""


def _examples_table(results: Results) -> pa.Table:
    rows = [
        {
            "task": name,
            "id": one.example.id,
            "kind": result.data.kind,
            "group": one.example.group,
            "part": one.example.part,
            "content": one.example.key(result.data.kind),
            "prompt": one.example.prompts[0] if one.example.prompts else None,
            "continuations": list(one.example.continuations),
            "answer_index": one.example.answer_index,
            "other_answers": list(one.example.other_answers),
            "log_probabilities": list(one.log_probabilities),
            "continuation_tokens": list(one.target_tokens),
            "predicted": one.predicted,
            "predicted_norm": one.predicted_norm,
            "predicted_bytes": one.predicted_bytes,
            "predicted_mutual_info": one.predicted_mutual_info,
            "correct": one.correct,
            "greedy": all(one.greedy) if one.greedy else None,
            "margin": one.margin,
            "value": one.value,
            "finite": one.finite,
            "tokens_cut": list(one.tokens_cut),
            "demonstrations": len(one.example.demonstration_ends),
            "bands": list(one.bands),
            "text": one.text,
            "number": one.number,
            "answer": one.example.number,
        }
        for name, result in results.tasks.items()
        for one in result.scored
    ]
    return pa.Table.from_pylist(rows, schema=_SCHEMA)
