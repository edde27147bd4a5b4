"""A task of lm-evaluation-harness as its file describes it, or the reasons why it cannot be evaluated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from gaguide.errors import Fault, FaultCollector
from gaguide.evaluate.tasks.harness.groups import HarnessGroup
from gaguide.evaluate.tasks.harness.source import FunctionReference

OutputType = Literal["multiple_choice", "loglikelihood", "loglikelihood_rolling"]
Template = str | int | list[Any] | dict[str, Any] | FunctionReference | None
"""A column's name, Jinja, or the value itself; a Python function where that is trusted."""

METRICS: Mapping[str, tuple[str, ...]] = {
    "multiple_choice": (
        "acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "brier_score", "f1", "mcc",
    ),
    "loglikelihood": ("perplexity", "acc"),
    "loglikelihood_rolling": ("word_perplexity", "byte_perplexity", "bits_per_byte"),
}  # fmt: skip
"""The harness's metrics of each output type that scores given texts."""
_DEFAULT_METRICS = {**METRICS, "multiple_choice": ("acc", "acc_norm")}
_AGGREGATIONS = {
    "f1": "f1", "mcc": "matthews_corrcoef", "brier_score": "brier_score", "perplexity": "perplexity",
    "word_perplexity": "weighted_perplexity", "byte_perplexity": "weighted_perplexity",
    "bits_per_byte": "bits_per_byte",
}  # fmt: skip
"""The harness's aggregation of a metric that names none; all others are means."""
_NUMBERS = {"mean", "median", "nanmean", "perplexity"}
_CHOICES = {"f1", "matthews_corrcoef"}
_WEIGHTED = {"weighted_perplexity", "bits_per_byte"}
"""Aggregations of numbers, of (right, predicted), and of (log-likelihood, weight)."""
AGGREGATION_NAMES = ("mean", "median", "nanmean", *dict.fromkeys(_AGGREGATIONS.values()))
_LOWER_IS_BETTER = {"brier_score", "perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"}

_KNOWN = {
    "task", "task_alias", "tag", "group", "task_list", "custom_dataset", "dataset_path", "dataset_name",
    "dataset_kwargs", "training_split", "validation_split", "test_split", "fewshot_split", "process_docs",
    "doc_to_text", "doc_to_target", "doc_to_image", "doc_to_audio", "unsafe_code", "doc_to_choice",
    "process_results", "use_prompt", "description", "target_delimiter", "fewshot_delimiter", "fewshot_config",
    "num_fewshot", "metric_list", "output_type", "generation_kwargs", "repeats", "filter_list",
    "should_decontaminate", "doc_to_decontamination_query", "gen_prefix", "metadata",
}  # fmt: skip
_UNUSED = {"doc_to_decontamination_query", "metadata", "generation_kwargs"}
"""Keys that change no number of a task that scores given texts."""
_FEWSHOT_KEYS = {
    "sampler", "split", "process_docs", "fewshot_indices", "samples", "doc_to_text", "doc_to_choice",
    "doc_to_target", "gen_prefix", "fewshot_delimiter", "target_delimiter",
}  # fmt: skip
_WAYS = {
    "process_docs": "save what it returns as JSON Lines once, and give `dataset_path: json` with "
    "`dataset_kwargs: {data_files: {test: FILE}}` in place of it",
    "custom_dataset": "save its documents as JSON Lines once, and give `dataset_path: json` with "
    "`dataset_kwargs: {data_files: {test: FILE}}` in place of it",
    "doc_to_text": "write it as a column's name or as Jinja",
    "doc_to_choice": "write it as a list, a column's name, or Jinja that gives a list",
    "doc_to_target": "write it as a column's name, an index, or Jinja",
    "process_results": "leave it out, and name in metric_list the metrics of the output type",
    "samples": "write the demonstrations as a list of documents",
    "sampler": "choose default or first_n",
}
"""Alternative to a Python function, by the key that names it."""


@dataclass(frozen=True)
class HarnessMetric:
    """An entry of `metric_list`."""

    name: str
    """Name in results."""
    aggregation: str | FunctionReference
    """How examples become one number: one of `AGGREGATION_NAMES`, or Python."""
    higher_is_better: bool
    """As the file says, else as the harness has it."""


@dataclass(frozen=True)
class HarnessFewshot:
    """How demonstrations are drawn and written; what the file leaves out is taken from the task."""

    sampler: str
    """`default` makes a new draw for each document, `first_n` takes the first ones."""
    split: str | None
    """Split that they are drawn from; None follows the harness's rule."""
    samples: list[dict[str, Any]] | FunctionReference | None
    """The documents themselves."""
    process_docs: FunctionReference | None
    """Applied to the split's documents first."""
    doc_to_text: Template
    """A demonstration's question."""
    doc_to_choice: Template
    """Its possible answers."""
    doc_to_target: Template
    """Its answer, or the index of it among them."""
    gen_prefix: str | None
    """Beginning of each answer."""
    fewshot_delimiter: str
    """Text after each demonstration."""
    target_delimiter: str
    """Text before each demonstration's answer."""


@dataclass(frozen=True)
class HarnessTask:
    """A task file of the harness; field names are its keys."""

    name: str
    """Name of the task (`task`)."""
    output_type: OutputType
    """How examples are scored: by choices, by log-likelihood, or by generated text."""
    path: Path
    """The task file."""
    dataset_path: str | None
    """Hub data set, or the kind of its files, such as json; None with `custom_dataset`."""
    dataset_name: str | None
    """Configuration of the data set."""
    dataset_kwargs: Mapping[str, Any]
    """Further arguments of `datasets.load_dataset`."""
    custom_dataset: FunctionReference | None
    """Function that makes the data set."""
    training_split: str | None
    """Split that demonstrations are drawn from by preference."""
    validation_split: str | None
    """Split of the examples where there is no test split."""
    test_split: str | None
    """Split of the examples."""
    process_docs: FunctionReference | None
    """Applied to a split's documents before they become examples."""
    doc_to_text: Template
    """A document's prompt."""
    doc_to_choice: Template
    """Its possible answers."""
    doc_to_target: Template
    """Its right answer, or the index of it among them."""
    process_results: FunctionReference | None
    """Function that gives an example's metrics; None for the harness's own."""
    description: str
    """Text before everything else in a prompt."""
    target_delimiter: str
    """Text between prompt and answer."""
    gen_prefix: str | None
    """Beginning of the answer, given to the model."""
    num_fewshot: int | None
    """Demonstrations in a prompt; None leaves it to the evaluation."""
    fewshot: HarnessFewshot
    """How the demonstrations are drawn and written."""
    metrics: tuple[HarnessMetric, ...]
    """The task's metrics, in the file's order."""
    alias: str
    """Name that tables show."""
    filter_name: str = "none"
    """Second half of the harness's metric names."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """The file's own notes, such as its version."""
    groups: tuple[HarnessGroup, ...] = ()
    """Groups through which the task was named, the outermost first."""
    tree: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The keys and values of the file."""
    warnings: tuple[str, ...] = ()
    """Entries of the file that have no effect."""


def parse_task(tree: Mapping[str, Any], path: Path, trust: bool) -> HarnessTask:
    """The task in the keys and values of a file. Raises `UserError` with everything that is not supported.

    trust: whether Python functions that the file names may run.
    """
    with FaultCollector() as faults:
        faults.add(*_faults(tree, path, trust))
    fewshot, warnings = dict(tree.get("fewshot_config") or {}), list[str]()
    output_type = cast(OutputType, tree["output_type"])
    kwargs = dict(tree.get("dataset_kwargs") or {})
    kwargs.pop("trust_remote_code", None)  # datasets 4 has no such argument; the harness drops it too
    if fewshot.get("fewshot_indices"):
        warnings.append("fewshot_config.fewshot_indices has no effect, as in lm-evaluation-harness 0.4.13")
    metrics = tuple(_metrics(tree, output_type, trust, warnings))
    text: dict[str, Any] = {
        key: tree.get(key) for key in ("doc_to_text", "doc_to_choice", "doc_to_target", "process_docs")
    }
    delimiters: dict[str, Any] = {
        "target_delimiter": _or(tree.get("target_delimiter"), " "),
        "fewshot_delimiter": _or(tree.get("fewshot_delimiter"), "\n\n"),
        "gen_prefix": tree.get("gen_prefix"),
    }
    inherited = text | delimiters
    inherited |= {"split": tree.get("fewshot_split"), "samples": None, "sampler": "default"}
    fewshot.pop("fewshot_indices", None)
    filters = tree.get("filter_list") or [{"name": "none"}]
    metadata = tree.get("metadata")
    return HarnessTask(
        name=tree["task"], output_type=output_type, path=path,
        dataset_path=tree.get("dataset_path"), dataset_name=tree.get("dataset_name"), dataset_kwargs=kwargs,
        custom_dataset=tree.get("custom_dataset"), training_split=tree.get("training_split"),
        validation_split=tree.get("validation_split"), test_split=tree.get("test_split"),
        **text, process_results=tree.get("process_results"), description=tree.get("description") or "",
        target_delimiter=delimiters["target_delimiter"], gen_prefix=delimiters["gen_prefix"],
        num_fewshot=tree.get("num_fewshot"), fewshot=HarnessFewshot(**(inherited | fewshot)), metrics=metrics,
        alias=str(tree.get("task_alias") or tree["task"]), filter_name=str(filters[0]["name"]),
        metadata=metadata if isinstance(metadata, dict) else {}, tree=dict(tree),
        warnings=tuple(f"task {tree['task']}: {text}" for text in warnings),
    )  # fmt: skip


def _or(value: Any, default: str) -> str:
    return default if value is None else str(value)


def _faults(tree: Mapping[str, Any], path: Path, trust: bool) -> Iterator[Fault]:
    def fault(key: str, problem: str, remedy: str) -> Fault:
        value = tree.get(key)
        return Fault(f"{path}: {key}", problem, remedy, value if isinstance(value, (str, int)) else None)

    if "class" in tree:
        yield fault("class", "the task is a Python class", "write it as YAML, or evaluate it with lm_eval")
        return
    if not isinstance(tree.get("task"), str):
        yield fault("task", "is required: the task's name", "give the file that includes this one, or a name")
    yield from (fault(key, "unknown key", "correct or remove it") for key in tree if key not in _KNOWN)
    output_type = tree.get("output_type", "generate_until")
    if output_type == "generate_until":
        problem = "generates free text, which is not scored here"
        remedy = "use lm_eval, or score given answers (multiple_choice) or numbers (kind: numeric)"
        yield Fault(f"{path}: output_type", problem, remedy, output_type)
    elif output_type not in METRICS:
        yield fault("output_type", f"must be one of {', '.join(METRICS)}", "choose one of them")
    for key in ("doc_to_image", "doc_to_audio"):
        if tree.get(key) is not None:
            yield fault(key, "images and sound are not supported", "evaluate the task with lm_eval")
    if tree.get("use_prompt") is not None:
        yield fault("use_prompt", "needs the package promptsource", "write the prompt as doc_to_text")
    if tree.get("unsafe_code") and not trust:
        yield fault("unsafe_code", "the task runs code that a model writes", "evaluate it with lm_eval")
    yield from _function_faults(tree, path, trust)
    yield from _shape_faults(tree, path)


def _function_faults(tree: Mapping[str, Any], path: Path, trust: bool) -> Iterator[Fault]:
    if trust:
        return
    fewshot = tree.get("fewshot_config") or {}
    places = [(key, key, value) for key, value in tree.items() if key not in _UNUSED]
    places += [(f"fewshot_config.{key}", key, value) for key, value in fewshot.items()]
    for place, key, value in places:
        if isinstance(value, FunctionReference):
            way = _WAYS.get(key, "write it without Python")
            yield Fault(
                f"{path}: {place}",
                f"is a Python function, !function {value.name}, which is not run unless you ask for it",
                f"{way}; or read {value.file} and, if you trust it, give --trust-remote-code",
            )


def _shape_faults(tree: Mapping[str, Any], path: Path) -> Iterator[Fault]:
    output_type = tree.get("output_type")
    if output_type not in METRICS:
        return
    fewshot = tree.get("fewshot_config") or {}
    unknown = [key for key in fewshot if key not in _FEWSHOT_KEYS]
    for key in unknown:
        yield Fault(f"{path}: fewshot_config.{key}", "unknown key", "correct or remove it")
    if fewshot.get("sampler", "default") not in ("default", "first_n"):
        problem, remedy = "must be default or first_n", "choose one of them"
        yield Fault(f"{path}: fewshot_config.sampler", problem, remedy, str(fewshot["sampler"]))
    needed = ["doc_to_target"]
    needed += ["doc_to_choice"] if output_type == "multiple_choice" else []
    needed += ["doc_to_text"] if output_type != "loglikelihood_rolling" else []
    if "custom_dataset" not in tree:
        needed.append("dataset_path")
    for key in needed:
        if tree.get(key) is None:
            yield Fault(f"{path}: {key}", f"is required for output_type {output_type}", "give it")
    if tree.get("test_split") is None and tree.get("validation_split") is None:
        yield Fault(f"{path}: test_split", "test_split or validation_split is required", "name a split")
    for one in tree.get("filter_list") or ():
        used = [step.get("function") for step in one.get("filter", ())]
        if any(name != "take_first" for name in used) or len(tree["filter_list"]) > 1:
            listed = ", ".join(map(str, used))
            problem = f"filters answers with {listed}, which log-probabilities do not have"
            yield Fault(f"{path}: filter_list", problem, "remove it")


def _fits(metric: str, aggregation: object) -> bool:
    """Whether an aggregation fits a metric's per-example values: a number, or a pair of some kind."""
    if aggregation is None or isinstance(aggregation, FunctionReference):
        return True
    own = _AGGREGATIONS.get(metric, "mean")
    kinds = _NUMBERS, _CHOICES, _WEIGHTED, {"brier_score"}
    return any(own in kind and aggregation in kind for kind in kinds)


def _metrics(
    tree: Mapping[str, Any], output_type: OutputType, trust: bool, warnings: list[str]
) -> Iterator[HarnessMetric]:
    """The metrics that are computed; `warnings` receives why others are not."""
    listed = tree.get("metric_list") or [{"metric": name} for name in _DEFAULT_METRICS[output_type]]
    for entry in listed:
        name, aggregation = entry.get("metric"), entry.get("aggregation")
        if isinstance(name, FunctionReference):
            warnings.append(f"metric_list: {name.name} is a Python function, which is not computed")
        elif isinstance(aggregation, FunctionReference) and not trust:
            warnings.append(
                f"metric_list: {name} is not computed, since its aggregation is a Python function, !function "
                f"{aggregation.name}: read {aggregation.file} and, if you trust it, give --trust-remote-code"
            )
        elif isinstance(aggregation, str) and aggregation not in AGGREGATION_NAMES:
            known = ", ".join(AGGREGATION_NAMES)
            warnings.append(
                f"metric_list: {name} is not computed: aggregation {aggregation} is not one of {known}"
            )
        elif tree.get("process_results") is None and not _fits(str(name), aggregation):
            warnings.append(
                f"metric_list: {name} is not computed: aggregation {aggregation} is not for its values"
            )
        elif name not in METRICS[output_type] and tree.get("process_results") is None:
            warnings.append(f"metric_list: {name} is not a metric of {output_type} in the harness")
        else:
            higher = entry.get("higher_is_better")
            yield HarnessMetric(
                str(name),
                aggregation or _AGGREGATIONS.get(str(name), "mean"),
                name not in _LOWER_IS_BETTER if higher is None else bool(higher),
            )
