"""The model card (README.md) of an exported model, written from the records of its run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import yaml
from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from gaguide.config.yaml_tree import parse_yaml
from gaguide.errors import mask_credentials
from gaguide.files import write_text
from gaguide.grouping import grouped
from gaguide.log import run_files
from gaguide.model.content import ADAPTER_CONFIG
from gaguide.numbers import fixed
from gaguide.publish.base import CARD, BaseModel, is_hub_id
from gaguide.publish.citation import paper_citation

_MARK = "<!-- written by gaguide; a card without this line is left as it is -->"
_UNKNOWN_LICENSE = (
    "The licence of the base model is not known to this card: find it, and state it, before you share "
    "the model."
)


class Score(Protocol):
    """One row of the table of evaluations: the fields of a report's score that the card uses."""

    @property
    def task(self) -> str:
        """Name of the task."""

    @property
    def metric(self) -> str:
        """Name of the metric."""

    @property
    def value(self) -> float:
        """Its value, finite."""

    @property
    def low(self) -> float | None:
        """Lower end of the 95% interval over examples; None where there is none."""

    @property
    def high(self) -> float | None:
        """Upper end."""

    @property
    def count(self) -> int | None:
        """Number of examples."""

    @property
    def note(self) -> str:
        """Note on this number for the reader, such as that all answers are the same."""


def write_card(run: Path, model: Path, scores: Sequence[Score] | None = None) -> bool:
    """Write `model`/README.md from summary.json and config.yaml of `run`.

    The card of a folder with an adapter_config.json says how adapters are loaded. `scores` are None where the
    run's evaluations were not looked for. A card that gaguide did not write is left alone; returns whether it
    was written. The base model's licence and languages are carried over.
    """
    if read_own_card(model) is not None:
        return False
    summary = json.loads((run / run_files.SUMMARY).read_text("utf-8"))
    config = mask_credentials((run / run_files.CONFIG).read_text("utf-8"))
    adapter = (model / ADAPTER_CONFIG).is_file()
    text = render_card(summary, config, scores, adapter=adapter, dtype=_dtype(model))
    write_text(model / CARD, text)
    return True


def _dtype(model: Path) -> str:
    """The precision of the weights in a model's folder, by its configuration; adapters are in float32."""
    path = model / "config.json"
    found = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return str(found.get("dtype") or found.get("torch_dtype") or "float32")


def read_own_card(model: Path) -> str | None:
    """The text of a card in `model` that gaguide did not write; None where there is none."""
    path = model / CARD
    text = path.read_text("utf-8") if path.is_file() else _MARK
    return None if _MARK in text else text


def render_card(
    summary: Mapping[str, Any],
    config: str,
    scores: Sequence[Score] | None = None,
    adapter: bool = False,
    dtype: str = "float32",
) -> str:
    """The card's text: YAML metadata, then Markdown. `config` is the text of config.yaml, without secrets.

    adapter: the card is of the adapters alone, not of a whole model. dtype: that of the folder's weights.
    """
    settings = parse_yaml(config)
    del settings["output"]  # a path of the machine it was made on
    base = BaseModel.from_record(summary["base_model"])
    sources = tuple(mask_credentials(source) for source in summary.get("sources") or ())
    data = ModelCardData(
        base_model=base.hub_id,
        datasets=[source for source in sources if "/" in source and is_hub_id(source)] or None,
        language=list(base.language) or None,
        license=base.license,
        license_name=base.license_name,
        license_link=base.license_link,
        base_model_relation="adapter" if adapter and base.hub_id else None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=[
            "gaguide",
            *(["attention-guidance"] if summary.get("guidance_weight") else []),
            *(["lora"] if summary.get("adapter") else []),
        ],
        model_name=str(summary["name"]),
        eval_results=[_result(score) for score in scores or ()] or None,
    )
    environment = Environment(
        loader=PackageLoader("gaguide.publish", "."),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown, which the template escapes where necessary
    )
    body = environment.get_template("card.md.jinja").render(
        **_content(summary, settings, base, sources, dtype),
        config=yaml.safe_dump(settings, sort_keys=False).strip(),
        scores=_rows(scores),
        looked=scores is not None,
        adapter=adapter,
        merged=bool(summary.get("adapter")) and not adapter,
        citation=paper_citation(),
    )
    return f"---\n{data.to_yaml()}\n---\n{_MARK}\n\n{body}"


def _content(
    summary: Mapping[str, Any],
    settings: Mapping[str, Any],
    base: BaseModel,
    sources: tuple[str, ...],
    dtype: str,
) -> dict[str, Any]:
    before, after = (summary["validation"].get(when) or {} for when in ("before", "after"))
    if _measured_heads(before) != _measured_heads(after):  # a resume has changed the plan
        before = {**before, "guided_attention": None}
    guided = bool(summary.get("guidance_weight"))
    return {
        "name": _cell(summary["name"]),
        "base": base,
        "base_link": f"[{base.hub_id}](https://huggingface.co/{base.hub_id})"
        if base.hub_id
        else f"`{base.name}`",
        "guided": guided,
        "measured": after.get("guided_attention") is not None,
        "experiment": summary.get("experiment"),
        "guidance": settings["guidance"],
        "plan": _plan(summary.get("heads") or ()),
        "patterns": [
            (_cell(name), _listed(words)) for name, words in (summary.get("patterns") or {}).items() if words
        ],
        "training": _training(summary, settings, sources),
        "blocks": after.get("blocks"),
        "before": _numbers(before),
        "after": _numbers(after),
        "limits": _limits(summary, base, guided, dtype),
        "provenance": _provenance(summary, base),
        "versions": summary.get("versions") or {},
    }


def _plan(heads: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the table of guided heads: heads of one pattern and weight together."""
    rows = grouped(((head["pattern"], head["weight"]), (head["layer"], head["head"])) for head in heads)
    found = []
    for (pattern, weight), places in rows.items():
        layers, numbers = sorted({layer for layer, _ in places}), sorted({head for _, head in places})
        whole = len(places) == len(layers) * len(numbers)
        of_heads = ", ".join(map(str, numbers)) if whole else ", ".join(f"{la}.{he}" for la, he in places)
        of_layers = ", ".join(map(str, layers)) if whole else "as layer.head"
        found.append(
            {"heads": of_heads, "layers": of_layers, "pattern": _cell(pattern), "weight": f"{weight:g}"}
        )
    return found


def _listed(words: Sequence[str]) -> str:
    """Words or vocabulary pieces, as they are, in a paragraph of Markdown."""
    quoted = (f"`{word}`" if "`" not in word else f"`` {word} ``" for word in words)
    return f"{', '.join(quoted)} ({len(words)})"


def _training(
    summary: Mapping[str, Any], settings: Mapping[str, Any], sources: tuple[str, ...]
) -> list[tuple[str, str]]:
    train, dropped = settings["train"], int(summary.get("dropped_steps") or 0)
    rows = [
        ("text", ", ".join(map(_cell, sources)) or "not recorded"),
        *_mixture(summary.get("mixture") or (), sources),
        ("tokens", f"{summary['tokens']:,}"),
        ("steps", f"{summary['steps']:,}" + (f", of which {dropped:,} were dropped" if dropped else "")),
        ("global batch", f"{train['global_batch']} blocks of {settings['data']['block_length']} tokens"),
        (
            "learning rate",
            f"{train['learning_rate']:g}, {train['schedule']}, {train['warmup_steps']} warmup steps",
        ),
        ("ranks", f"{summary['world_size']}, ZeRO stage {summary['zero_stage']}"),
        ("time in steps", f"{summary['seconds']:,.0f} s"),
        ("seed", str(settings["seed"])),
    ]
    if (trained := summary.get("trained_parameters")) is not None:
        rows.append(("trained", _trained(summary, int(trained))))
    if summary.get("changes"):
        rows.append(("settings changed on the way", f"{len(summary['changes'])} times: see summary.json"))
    return rows


def _mixture(parts: Sequence[Mapping[str, Any]], sources: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Share and epochs of each source of a mixture."""
    if parts:
        named = zip(sources, parts, strict=False)
        yield (
            "mixture",
            "; ".join(
                f"{_cell(source)} {part['share']:.1%}, {part['epochs']:.2f} epochs" for source, part in named
            ),
        )


def _trained(summary: Mapping[str, Any], parameters: int) -> str:
    """The trained part, where it was not the whole model."""
    adapter = summary.get("adapter")
    if adapter is None:
        return f"{parameters:,} parameters; the others kept the base model's values"
    return (
        f"adapters alone, {parameters:,} parameters: LoRA of rank {adapter['rank']}, "
        f"alpha {adapter['alpha']:g}, dropout {adapter['dropout']:g} on {', '.join(adapter['targets'])}"
        + ("; the base was kept in 4 bits (NF4)" if adapter["quantize"] else "")
    )


def _limits(summary: Mapping[str, Any], base: BaseModel, guided: bool, dtype: str) -> Iterator[str]:
    if dtype != "float32":
        yield (
            f"The weights are rounded to {dtype}; losses and attention above are of the run's own weights."
        )
    if guided:
        yield (
            "This card shows the guided heads' attention. Whether the model uses their output is another "
            "question, which `gaguide ablate` answers."
        )
    yield "One run of one seed: differences from other runs may be noise. Intervals are over examples only."
    if base.is_pretrained:
        yield "Biases and limits of the base model remain."
        if base.license is None:
            yield _UNKNOWN_LICENSE
    if summary.get("dropped_steps"):
        yield "Steps whose gradient was not finite were dropped."


def _provenance(summary: Mapping[str, Any], base: BaseModel) -> list[tuple[str, str]]:
    prints = summary.get("fingerprints") or {}
    rows = [("base model", base.fingerprint), *((name, str(value)) for name, value in prints.items())]
    return [
        *rows,
        *((f"version of {name}", str(value)) for name, value in (summary.get("versions") or {}).items()),
    ]


def _measured_heads(record: Mapping[str, Any]) -> set[tuple[int, int, str]]:
    """(layer, head, pattern) of the heads that the record's attention is the mean of."""
    heads = record.get("per_head") or ()
    return {(one["layer"], one["head"], one["pattern"]) for one in heads if one["attention"] is not None}


def _numbers(record: Mapping[str, Any]) -> dict[str, str]:
    found = {"lm_loss": record.get("lm_loss"), "attention": record.get("guided_attention")}
    return {name: "not measured" if value is None else f"{value:.4f}" for name, value in found.items()}


def _rows(scores: Sequence[Score] | None) -> list[dict[str, str]]:
    rows = []
    for score in scores or ():
        interval = (
            ""
            if score.low is None or score.high is None
            else f"{fixed(score.low, 4)} to {fixed(score.high, 4)}"
        )
        value = fixed(score.value, 4) + (f" ({_cell(score.note)})" if score.note else "")
        count = "" if score.count is None else f"{score.count:,}"
        rows.append(
            {
                "task": _cell(score.task),
                "metric": score.metric,
                "value": value,
                "interval": interval,
                "count": count,
            }
        )
    return rows


def _result(score: Score) -> EvalResult:
    return EvalResult(
        task_type="text-generation",
        dataset_type=score.task,
        dataset_name=score.task,
        metric_type=score.metric,
        metric_value=score.value,
        verified=False,
    )


def _cell(text: object) -> str:
    """Text for a cell of a Markdown table."""
    return str(text).replace("|", "\\|").replace("\n", " ")
