"""Ten task files of lm-evaluation-harness, one of each form, with their data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

NAMES = (
    "jinja_quiz", "mmlu_like", "winogrande_like", "piqa_like", "blimp_like", "lambada_like", "wikitext_like",
    "several_right", "begun_answer", "long_shots",
)  # fmt: skip
_WORDS = ["cat", "dog", "number", "street", "city", "answer", "question", "mat", "river", "day", "night"]


def write_tasks(folder: Path, rows: int = 8) -> Path:
    """Write the ten files and their data, `rows` documents each, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (tree, splits) in _tasks(rows).items():
        kwargs: dict[str, Any] = {}
        if tree["dataset_path"] != "local_set":
            files = {split: _write(folder, name, split, tree, of) for split, of in splits.items()}
            kwargs = {"data_files": files}
        else:
            local = folder / "local_set"
            local.mkdir(exist_ok=True)
            for split, of in splits.items():
                pq.write_table(pa.Table.from_pylist(list(of)), local / f"{split}.parquet")
            tree |= {"dataset_path": str(local)}
        tree |= {"task": name, "tag": "all_ten"} | ({"dataset_kwargs": kwargs} if kwargs else {})
        (folder / f"{name}.yaml").write_text(json.dumps(tree, ensure_ascii=False), "utf-8")
    return folder


def write_groups(folder: Path) -> Path:
    """Write two groups of the tasks in `folder`, one of which contains the other and a task of its own."""
    tree = json.loads((folder / "piqa_like.yaml").read_text())
    one_more = {key: value for key, value in tree.items() if key not in ("task", "tag")}
    inner = {
        "group": "inner", "task": ["jinja_quiz", {"task": "piqa_like", "num_fewshot": 0}],
        "aggregate_metric_list": [
            {"metric": "acc", "weight_by_size": True}, {"metric": "acc_norm", "weight_by_size": False},
        ],
    }  # fmt: skip
    outer = {
        "group": "outer", "group_alias": "All of it",
        "task": ["inner", "blimp_like", {"task": "own_task", **one_more}],
        "aggregate_metric_list": {"metric": "acc", "filter_list": "none"}, "metadata": {"version": 2.0},
    }  # fmt: skip
    for tree in (inner, outer):
        (folder / f"_{tree['group']}.yaml").write_text(json.dumps(tree))
    return folder


def _write(folder: Path, name: str, split: str, tree: Mapping[str, Any], rows: Sequence[dict]) -> str:
    path = folder / f"{name}_{split}.{tree['dataset_path']}"
    if tree["dataset_path"] == "parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    elif tree["dataset_path"] == "csv":
        lines = [",".join(rows[0])] + [",".join(f'"{value}"' for value in row.values()) for row in rows]
        path.write_text("\n".join(lines) + "\n", "utf-8")
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return str(path)


def _word(at: int) -> str:
    return _WORDS[at % len(_WORDS)]


def _tasks(count: int) -> dict[str, tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]]:
    choice = {"output_type": "multiple_choice", "test_split": "test"}
    accuracies = [{"metric": "acc"}, {"metric": "acc_norm"}]
    every = range(count)
    odd = {"test": range(count), "dev": range(50, 56)}
    quiz = {
        split: [
            {"q": f"Is {at} not an odd number? 東京", "opts": ["yes", "no it is", "maybe"][: 2 + at % 2],
             "gold": ["yes", "no it is"][at % 2]}
            for at in of
        ]
        for split, of in odd.items()
    }  # fmt: skip
    letters = {
        split: [
            {"question": f" What follows the {_word(at)}? ", "choices": [_word(at + n) for n in range(4)],
             "answer": at % 4}
            for at in of
        ]
        for split, of in odd.items()
    }  # fmt: skip
    pronouns = [
        {"sentence": f"The {_word(at)} did not see the {_word(at + 3)} because _ was late.",
         "option1": f"the {_word(at)}", "option2": f"the {_word(at + 3)}", "answer": str(1 + at % 2)}
        for at in every
    ]  # fmt: skip
    goals = [
        {"goal": f"To find a {_word(at)}", "sol1": f"Look at the {_word(at + 1)}.", "sol2": "Do not look!",
         "label": at % 2}
        for at in every
    ]  # fmt: skip
    pairs = [
        {"good": f"Nobody has ever seen the {_word(at)}.", "bad": f"Somebody has ever seen the {_word(at)}."}
        for at in every
    ]
    ends = [{"text": f"The {_word(at)} is not the {_word(at + 1)} but a {_word(at + 2)}"} for at in every]
    pages = [
        {"page": " ".join(f"the {_word(at * n)}\n is not {n}" for n in range(1 + 13 * at))} for at in every
    ]
    several = [{"ask": f"Name a {_word(at)}:", "right": [at % 3, (at + 1) % 3]} for at in every]
    begun = [
        {"ask": f"Is the {_word(at)} not here?", "label": ["no", "yes"][at % 2], "begin": "I say"}
        for at in every
    ]
    long = [
        {"premise": f"The {_word(at)} is {'not ' * (at % 3)}{_word(at + 1)}. " * 2, "label": at % 2}
        for at in range(count)
    ]
    return {
        "jinja_quiz": (
            choice | {
                "dataset_path": "json", "fewshot_split": "dev", "description": "Answer the questions.\n\n",
                "doc_to_text": "Q: {{q | trim}}\nA:", "doc_to_choice": "{{opts}}", "doc_to_target": "gold",
                "metric_list": accuracies,
            }, quiz,
        ),
        "mmlu_like": (
            choice | {
                "dataset_path": "json", "fewshot_split": "dev", "fewshot_config": {"sampler": "first_n"},
                "description": "The following are questions about {{choices[0]}}.\n\n",
                "doc_to_text": "{{question.strip()}}\nA. {{choices[0]}}\nB. {{choices[1]}}\n"
                "C. {{choices[2]}}\nD. {{choices[3]}}\nAnswer:",
                "doc_to_choice": ["A", "B", "C", "D"], "doc_to_target": "answer",
                "metric_list": [*accuracies, {"metric": "mcc"}],
            }, letters,
        ),
        "winogrande_like": (
            choice | {
                "dataset_path": "json",
                "doc_to_text": "{{ 0 if answer == '1' else 1 }}",
                "doc_to_choice": "{% set i = sentence.index('_') %}"
                "{{[sentence[:i] + option1, sentence[:i] + option2]}}",
                "doc_to_target": "{{ sentence[sentence.index('_') + 1:].strip() }}",
                "metric_list": accuracies,
            }, {"test": pronouns},
        ),
        "piqa_like": (
            choice | {
                "dataset_path": "parquet", "doc_to_text": "Question: {{goal}}\nAnswer:",
                "doc_to_choice": "{{[sol1, sol2]}}", "doc_to_target": "label",
                "metric_list": [*accuracies, {"metric": "acc_bytes"}, {"metric": "f1"}],
            }, {"test": goals},
        ),
        "blimp_like": (
            choice | {
                "dataset_path": "json", "doc_to_text": "", "doc_to_choice": "{{[good, bad]}}",
                "doc_to_target": 0, "num_fewshot": 0, "target_delimiter": "",
                "metric_list": [{"metric": "acc"}],
            }, {"test": pairs},
        ),
        "lambada_like": (
            {
                "output_type": "loglikelihood", "dataset_path": "json", "test_split": "test",
                "doc_to_text": "{{text.split(' ')[:-1]|join(' ')}}",
                "doc_to_target": "{{' ' + text.split(' ')[-1]}}",
                "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
            }, {"test": ends},
        ),
        "wikitext_like": (
            {
                "output_type": "loglikelihood_rolling", "dataset_path": "json", "test_split": "test",
                "doc_to_text": "", "doc_to_target": "page",
            }, {"test": pages},
        ),
        "several_right": (
            choice | {
                "dataset_path": "json", "doc_to_text": "ask", "doc_to_target": "right",
                "doc_to_choice": {"a": "a cat", "b": "the dog", "c": "number 12"}, "num_fewshot": 0,
                "metric_list": [*accuracies, {"metric": "exact_match"}],
            }, {"test": several},
        ),
        "begun_answer": (
            choice | {
                "dataset_path": "csv", "doc_to_text": "{{ask}}", "doc_to_choice": ["no", "yes"],
                "doc_to_target": "{{label}}", "gen_prefix": "{{begin}}", "target_delimiter": " ",
                "fewshot_config": {
                    "sampler": "default",
                    "samples": [{"ask": f"Is {at} odd?", "label": ["no", "yes"][at % 2], "begin": "Well"}
                                for at in range(4)],
                },
                "metric_list": [*accuracies, {"metric": "acc_mutual_info"}, {"metric": "brier_score"}],
            }, {"test": begun},
        ),
        "long_shots": (
            choice | {
                "dataset_path": "local_set", "fewshot_split": "test",
                "doc_to_text": "{{premise}} True or false?",
                "doc_to_choice": ["true", "false"], "doc_to_target": "{{label}}", "num_fewshot": 2,
                "fewshot_delimiter": "\n", "target_delimiter": "\n", "metric_list": accuracies,
            }, {"test": long},
        ),
    }  # fmt: skip
