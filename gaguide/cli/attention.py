"""`gaguide attention`: pictures and pages of where chosen heads of one or several models look in a text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gaguide.errors import Fault, UserError, first_line, suggestion

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from gaguide.attention import Panel

_VIEWS = ("heatmap", "lines")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("attention")(attention)


def attention(
    model: Annotated[
        list[str], typer.Option(help="Model folder, run folder or hub id; repeat it to compare models.")
    ],
    output: Annotated[
        list[Path],
        typer.Option(help="File to write: .png, .svg, .pdf, or .html to explore; may be repeated."),
    ],
    text: Annotated[str | None, typer.Option(help="The text to look at.")] = None,
    text_file: Annotated[Path | None, typer.Option(help="A file with the text, instead of --text.")] = None,
    layers: Annotated[
        str | None, typer.Option(help="Layers, e.g. 0,5; default: first, middle and last.")
    ] = None,
    heads: Annotated[
        str | None,
        typer.Option(help="Heads, e.g. 0,1; default: those the experiment guides, else 0."),
    ] = None,
    experiment: Annotated[
        str | None, typer.Option(help="Mark the words that this experiment guides to, e.g. 4-transition.")
    ] = None,
    view: Annotated[str, typer.Option(help="Of pictures: heatmap, or lines between tokens.")] = "heatmap",
    window: Annotated[
        str | None,
        typer.Option(help="Part of a long text to show, in tokens: START:STOP. A page shows all, in parts."),
    ] = None,
) -> None:
    """Where heads look in a text, as a picture or a page: queries by keys, or lines between tokens."""
    faults = _check(output, view, experiment)
    chosen_layers, chosen_heads = _indices("--layers", layers, faults), _indices("--heads", heads, faults)
    span = _window(window, faults)
    content = _text(text, text_file, faults)
    if faults:
        raise UserError(faults)

    names = _names(model)
    pages = [path for path in output if path.suffix.lower() == ".html"]
    whole = len(pages) == len(output)
    parts: list[list[Panel]] = []
    spans: list[tuple[int, int]] = []
    for folder, name in zip(model, names, strict=True):
        found = _panels(folder, name, content, chosen_layers, chosen_heads, experiment, span, whole)
        # Another model's tokenizer may split the text into other, or more, parts.
        for at, (part, panels) in enumerate(found):
            if at == len(parts):
                parts.append([])
                spans.append(part)
            parts[at] += panels
    _print_masses(parts[0], len(parts))
    for path in output:
        _write(path, parts, spans, view)
        typer.echo(f"wrote {path}")


def _write(path: Path, parts: list[list[Panel]], spans: list[tuple[int, int]], view: str) -> None:
    from gaguide.attention import draw_heatmaps, draw_lines, save_figure, to_page
    from gaguide.files import write_text

    if path.suffix.lower() == ".html":
        write_text(path, to_page(parts, spans, "Where attention heads look"))
        return
    (panels,) = parts
    save_figure(draw_heatmaps(panels) if view == "heatmap" else draw_lines(panels), path)


def _panels(
    folder: str,
    name: str,
    text: str,
    layers: list[int] | None,
    heads: list[int] | None,
    experiment: str | None,
    window: tuple[int, int] | None,
    whole: bool,
) -> list[tuple[tuple[int, int], list[Panel]]]:
    """One model's windows and panels; the model is freed on return, so that the next finds the memory.

    whole: without a window, show the whole text in parts; otherwise all of it must fit one picture.
    """
    import torch

    from gaguide.attention import split, window_panels
    from gaguide.attention.panels import check_window
    from gaguide.data.format.token_text import token_labels
    from gaguide.guidance import GuidancePlan

    model, tokenizer = _load(folder)
    ids_T = torch.tensor(tokenizer(text, add_special_tokens=True, verbose=False)["input_ids"])
    check_window(len(ids_T), window if window or not whole else (0, 1))
    config = model.config.get_text_config()
    patterns: dict[Any, Any] = {}
    if experiment is not None:
        plan = GuidancePlan.from_experiment(experiment, tokenizer)
        if not plan.is_empty:
            resolved = plan.resolve(config.num_hidden_layers, config.num_attention_heads)
            patterns = {key: guided.pattern for key, guided in resolved.items()}
    if heads is None:
        heads = sorted({head for _, head in patterns}) or [0]
    if layers is None:
        last = config.num_hidden_layers - 1
        layers = sorted({0, last // 2, last})
    labels = token_labels(tokenizer, ids_T.tolist())
    return [
        (part, window_panels(name, model, ids_T, labels, part, layers, heads, patterns))
        for part in ([window] if window else split(len(ids_T)))
    ]


def _load(folder: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    path = Path(folder)
    if path.is_dir() and not (path / "config.json").exists() and (path / "model").is_dir():
        path = path / "model"  # a run folder holds its model there
    source = str(path) if path.is_dir() else folder
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            source, attn_implementation="sdpa", dtype=torch.float32, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise UserError(
            Fault(
                "--model",
                f"cannot be loaded ({reason})",
                "give a run folder, a folder made by save_pretrained (tokenizer included), or a hub id "
                "on a machine that reaches the hub",
                folder,
            )
        ) from None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return model.to(device), tokenizer  # type: ignore[arg-type]


def _check(outputs: list[Path], view: str, experiment: str | None) -> list[Fault]:
    from gaguide.config.experiments import EXPERIMENTS
    from gaguide.figures import check_figure_path

    faults = [fault for path in outputs for fault in check_figure_path(path, also=(".html",))]
    if view not in _VIEWS:
        faults.append(Fault("--view", "no such view", suggestion(view, _VIEWS), view))
    if experiment is not None and experiment not in EXPERIMENTS:
        faults.append(
            Fault("--experiment", "no such experiment", suggestion(experiment, EXPERIMENTS), experiment)
        )
    return faults


def _text(text: str | None, file: Path | None, faults: list[Fault]) -> str:
    if (text is None) == (file is None):
        faults.append(Fault("--text, --text-file", "one of them is needed, not both", "give a sentence"))
        return ""
    if file is not None:
        try:
            text = file.read_text("utf-8")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
            faults.append(Fault("--text-file", f"cannot be read ({reason})", "give a text file", str(file)))
            return ""
    assert text is not None
    if not text.strip():
        faults.append(Fault("--text" if file is None else "--text-file", "is empty", "give a sentence"))
    return text


def _indices(option: str, given: str | None, faults: list[Fault]) -> list[int] | None:
    if given is None:
        return None
    try:
        return [int(part) for part in given.split(",")]
    except ValueError:
        faults.append(Fault(option, "is no list of numbers", f"write e.g. {option} 0,5", given))
        return None


def _window(given: str | None, faults: list[Fault]) -> tuple[int, int] | None:
    if given is None:
        return None
    start, _, stop = given.partition(":")
    try:
        return int(start or 0), int(stop)
    except ValueError:
        faults.append(Fault("--window", "is no START:STOP", "write e.g. --window 0:64", given))
        return None


def _names(models: list[str]) -> list[str]:
    """Short names that tell the models apart: `model` folders are named by their run."""
    short = [Path(model).resolve() if Path(model).exists() else Path(model) for model in models]
    names = [path.parent.name if path.name == "model" else path.name for path in short]
    if len(set(names)) == len(names):
        return names
    return [f"{at}: {model}" for at, model in enumerate(models, 1)]


def _print_masses(panels: list[Panel], parts: int) -> None:
    """The numbers behind the first part shown, where an experiment says which words count."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    guided = [panel for panel in panels if panel.pattern]
    if not guided:
        return
    models = list(dict.fromkeys(panel.model for panel in guided))
    table = Table("layer", "head", "words")
    for name in models:
        table.add_column(escape(name), overflow="fold")
    for key in sorted({(panel.layer, panel.head, str(panel.pattern)) for panel in guided}):
        mass = {p.model: p.mass for p in guided if (p.layer, p.head, p.pattern) == key}
        cells = ["–" if (value := mass.get(name)) is None else f"{value:.3f}" for name in models]
        table.add_row(str(key[0]), str(key[1]), key[2], *cells)
    table.title = "Attention on the guided words in this text" + (" (its first part)" if parts > 1 else "")
    Console().print(table)
