"""`gaguide attention`: pictures and pages of the attention that chosen heads of models have in a text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gaguide.cli.options import takes
from gaguide.errors import Fault, FaultCollector, UserError, not_one_of, suggestion

if TYPE_CHECKING:
    from gaguide.attention import Panel

_VIEWS = ("heatmap", "lines", "overview", "difference")


@dataclass(frozen=True)
class AttentionOptions:
    """Which attention to show, as given on the command line."""

    text: Annotated[str | None, typer.Option(help="The text.")] = None
    text_file: Annotated[Path | None, typer.Option(help="A file with the text, instead of --text.")] = None
    layers: Annotated[
        str | None, typer.Option(help="Layers, e.g. 0,5, or all.", show_default="first, middle and last")
    ] = None
    heads: Annotated[
        str | None,
        typer.Option(help="Heads, e.g. 0,1, or all.", show_default="those that --experiment guides, else 0"),
    ] = None
    experiment: Annotated[
        str | None, typer.Option(help="Mark the words of this experiment's patterns, e.g. 4-transition.")
    ] = None
    window: Annotated[
        str | None,
        typer.Option(
            help="Tokens of a long text to show, as START:STOP; by default a page shows all, in parts."
        ),
    ] = None

    def select(self, faults: FaultCollector) -> _Selection:
        """The checked options."""
        from gaguide.config.experiments import EXPERIMENTS

        if self.experiment is not None and self.experiment not in EXPERIMENTS:
            remedy = suggestion(self.experiment, EXPERIMENTS)
            faults.add(Fault("--experiment", "unknown experiment", remedy, self.experiment))
        return _Selection(
            _text(self.text, self.text_file, faults),
            _indices("--layers", self.layers, faults),
            _indices("--heads", self.heads, faults),
            self.experiment,
            _window(self.window, faults),
        )


@dataclass(frozen=True)
class _Selection:
    text: str
    """The text."""
    layers: list[int] | str | None
    """Layers, or `all`; None for the first, middle and last."""
    heads: list[int] | str | None
    """Heads, or `all`; None for those that the experiment guides, else 0."""
    experiment: str | None
    """Name of the experiment whose words are marked."""
    window: tuple[int, int] | None
    """Tokens [start, stop) to show; None for all."""


@takes(AttentionOptions)
def attention(
    options: AttentionOptions,
    model: Annotated[
        list[str], typer.Option(help="Model folder, run folder or hub id; repeat it to compare models.")
    ],
    output: Annotated[
        list[Path],
        typer.Option(help="File to write: .png, .svg, .pdf, or .html to explore; may be repeated."),
    ],
    view: Annotated[
        str,
        typer.Option(
            help="Kind of picture: heatmap; lines between tokens; overview, small maps of all heads; "
            "difference, each model minus the first."
        ),
    ] = "heatmap",
) -> None:
    """Show which tokens heads attend to, as a picture or a page: a heat map, or lines between tokens."""
    from gaguide.figures import check_figure_path
    from gaguide.files import expand_home, local_folder
    from gaguide.log import SlowWork

    model = [str(expand_home(name)) for name in model]
    with FaultCollector() as faults:
        given = [faults.attempt(local_folder, path, "--output") for path in output]
        output = [path for path in given if path is not None]
        for path in output:
            faults.add(*check_figure_path(path, also=(".html",)))
        if view not in _VIEWS:
            faults.add(not_one_of("--view", view, _VIEWS))
        elif view in ("overview", "difference") and any(path.suffix.lower() == ".html" for path in output):
            faults.add(
                Fault("--view", "is for pictures, not for pages", "give --output a .png, .svg or .pdf", view)
            )
        if view == "difference" and len(model) < 2:
            faults.add(Fault("--view", "needs two models or more", "give --model twice", view))
        selection = options.select(faults)
    if view == "overview":
        selection = replace(selection, layers=selection.layers or "all", heads=selection.heads or "all")

    only_pages = all(path.suffix.lower() == ".html" for path in output)
    parts: list[list[Panel]] = []
    spans: list[tuple[int, int]] = []
    for folder, name in zip(model, _display_names(model), strict=True):
        found = _panels(folder, name, selection, in_parts=only_pages)
        # Another model's tokenizer may partition the text differently, or into more parts.
        for at, (part, panels) in enumerate(found):
            if at == len(parts):
                parts.append([])
                spans.append(part)
            parts[at] += panels
    _print_masses(parts[0], len(parts))
    for path in output:
        with SlowWork(f"drawing {path}"):
            _write(path, parts, spans, view)
        typer.echo(f"wrote {path}")


def _write(path: Path, parts: list[list[Panel]], spans: list[tuple[int, int]], view: str) -> None:
    from gaguide.attention import (
        draw_difference,
        draw_heatmaps,
        draw_lines,
        draw_overview,
        save_figure,
        to_page,
    )
    from gaguide.files import write_text

    if path.suffix.lower() == ".html":
        write_text(path, to_page(parts, spans, "Where attention heads look"))
        return
    (panels,) = parts
    draw = {
        "heatmap": draw_heatmaps, "lines": draw_lines,
        "overview": draw_overview, "difference": draw_difference,
    }  # fmt: skip
    save_figure(draw[view](panels), path)


def _panels(
    folder: str, name: str, selection: _Selection, in_parts: bool
) -> list[tuple[tuple[int, int], list[Panel]]]:
    """One model's windows and panels. The model is freed on return, so that the next one finds the memory.

    in_parts: show the whole text in parts if the selection has no window; else it must fit into one picture.
    """
    import torch

    from gaguide.attention import split, text_panels
    from gaguide.attention.panels import check_window
    from gaguide.data.format.token_text import token_labels
    from gaguide.evaluate.model_folder import find_model_folder, load_model, model_path
    from gaguide.guidance import GuidancePlan
    from gaguide.log import SlowWork
    from gaguide.model.attention_support import causal_attention_modules

    with SlowWork(f"{name}: loading the model"):
        found = find_model_folder(model_path(folder))
        model = load_model(found, "fp32", torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    tokenizer = found.tokenizer
    ids_T = torch.tensor(tokenizer(selection.text, add_special_tokens=True, verbose=False)["input_ids"])
    if selection.window is not None or not in_parts:
        check_window(len(ids_T), selection.window)
    config = model.config.get_text_config()
    available = list(causal_attention_modules(model))
    patterns: dict[Any, Any] = {}
    if selection.experiment is not None:
        plan = GuidancePlan.from_experiment(selection.experiment, tokenizer)
        if not plan.is_empty:
            plan = plan.restricted_to(available, config.num_hidden_layers)
            resolved = plan.resolve(config.num_hidden_layers, config.num_attention_heads)
            patterns = {key: guided.pattern for key, guided in resolved.items()}
    heads, layers = selection.heads, selection.layers
    if heads is None:
        heads = sorted({head for _, head in patterns}) or [0]
    elif isinstance(heads, str):
        heads = list(range(config.num_attention_heads))
    if layers is None and available:
        layers = sorted({available[0], available[(len(available) - 1) // 2], available[-1]})
    elif not isinstance(layers, list):
        layers = available
    labels = token_labels(tokenizer, ids_T.tolist())
    windows = [selection.window] if selection.window else split(len(ids_T))
    parts = text_panels(name, model, ids_T, labels, windows, layers, heads, patterns)
    shown = []
    with SlowWork(f"{name}: attention of parts of the text", len(windows)) as work:
        for window, panels in zip(windows, parts, strict=True):
            if broken := sorted({panel.layer for panel in panels if not panel.weights_QK.isfinite().all()}):
                problem = f"its attention is not finite in layer {broken[0]}: its weights have diverged"
                raise UserError.of("--model", problem, "give an earlier checkpoint or another model", folder)
            shown.append((window, panels))
            work.done(len(shown))
    return shown


def _text(text: str | None, file: Path | None, faults: FaultCollector) -> str:
    if (text is None) == (file is None):
        faults.add(Fault("--text, --text-file", "must give one of them, not both", "give a sentence"))
        return ""
    if file is not None:
        try:
            text = file.read_text("utf-8-sig")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            faults.add(Fault("--text-file", f"cannot be read ({reason})", "give a text file", str(file)))
            return ""
    assert text is not None
    text = text.removeprefix("\ufeff")
    if not text.strip():
        faults.add(Fault("--text" if file is None else "--text-file", "must not be empty", "give a sentence"))
    return text


def _indices(option: str, given: str | None, faults: FaultCollector) -> list[int] | str | None:
    if given is None or given.strip() == "all":
        return "all" if given else None
    try:
        return [int(part) for part in given.split(",")]
    except ValueError:
        faults.add(Fault(option, "must be a list of numbers, or all", f"write e.g. {option} 0,5", given))
        return None


def _window(given: str | None, faults: FaultCollector) -> tuple[int, int] | None:
    if given is None:
        return None
    start, _, stop = given.partition(":")
    try:
        return int(start or 0), int(stop)
    except ValueError:
        faults.add(Fault("--window", "must be START:STOP", "write e.g. --window 0:64", given))
        return None


def _display_names(models: list[str]) -> list[str]:
    """Short names that differ from each other; a `model` folder is named after its run."""
    from gaguide.evaluate.model_folder import short_name

    names = [short_name(str(Path(model).resolve()) if Path(model).exists() else model) for model in models]
    if len(set(names)) == len(names):
        return names
    return [f"{at}: {model}" for at, model in enumerate(models, 1)]


def _print_masses(panels: list[Panel], parts: int) -> None:
    """Print the attention mass on the experiment's words, for the first part shown."""
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
