"""The report that compares runs: their numbers, curves and guided heads, and where the numbers come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from gaguide.report.comparison_report import differences_table
from gaguide.report.document import Cell, Chart, Part, Preformatted, Report, Row, Section, Table, folded
from gaguide.report.run_ablations import ablation_tables
from gaguide.report.run_figures import draw_course, draw_curves, draw_heads
from gaguide.report.run_findings import ablated_findings, cautions, findings, tested_findings
from gaguide.report.run_measures import FURTHER, Measure, Value, measures
from gaguide.report.run_paired import RunTests, paired_tests
from gaguide.report.run_records import RunRecord
from gaguide.report.style import series_style
from gaguide.report.text import ABSENT, csv_text, interval, mark_notes, shown, smallest_p

_NOTE = (
    "Differences (Δ) are to the first run; with brackets: 95% interval of the difference on the "
    "same examples, and its p value, not corrected. Bold: better beyond that interval. "
    "Brackets in the last line: 95% interval of the number itself, over examples. "
    "↑: higher is better, ↓: lower is better."
)


def run_report(runs: Sequence[RunRecord]) -> Report:
    """The report on the runs; the first run is the baseline."""
    tests = paired_tests(runs)
    rows = measures(runs, tests)
    paired, differing = paired_table(runs, tests), settings_table(runs)
    ablations = ablation_tables([run.ablation for run in runs])
    table = comparison_table(runs, rows)
    charts = (
        Chart(
            "curves",
            "Training",
            "Lines: training batches; gaps: steps without a finite number. Circles: held-out text. "
            "The first run is grey.",
            lambda: draw_curves(runs),
        ),
        Chart(
            "course",
            "Course of the training",
            "Training batches. Gaps: steps without a finite number.",
            lambda: draw_course(runs),
        ),
        Chart(
            "heads",
            "Guided heads",
            "Attention on a head's guided words by layer, held-out text. "
            "Hollow marks: before training; filled marks: after.",
            lambda: draw_heads(runs),
        ),
    )
    return Report(
        title="Comparison of runs",
        findings=(*findings(runs), *ablated_findings(runs), *tested_findings(runs, tests)),
        cautions=(*cautions(runs), *(f"{note}." for note in tests.notes)),
        summary=comparison_table(runs, [row for row in rows if row.section != FURTHER]),
        tables=tuple(part for part in (table, *ablations, paired, differing) if part.rows),
        charts=charts,
        body=(
            table,
            *(part for part in (*ablations, paired, differing) if part.rows),
            *charts,
            *_heads(runs),
            _provenance(runs),
        ),
        csv_files=lambda: {"": _csv(runs, rows)},
    )


def comparison_table(runs: Sequence[RunRecord], rows: Sequence[Measure]) -> Table:
    """A column for each run, a row for each measure."""
    return Table(
        name="runs",
        title="Comparison",
        header=("", *(run.name for run in runs)),
        rows=tuple((row.name, tuple(map(_cell, row.values))) for row in rows),
        note=" ".join([_NOTE, *mark_notes(value.doubt for row in rows for value in row.values)]),
        groups=tuple(row.section for row in rows),
        colours=("", *_colours(runs)),
        caption="Comparison of runs (Δ: to the first run)",
    )


def paired_table(runs: Sequence[RunRecord], tests: RunTests) -> Table:
    """Every test of a run against the first on the same examples."""
    main = sum(one.is_main for one in tests.tests) // max(1, len(runs) - 1)
    return replace(
        differences_table(tests.tests),
        name="paired",
        title=f"Tests against {runs[0].name} on the same examples",
        note="McNemar for accuracies, a paired bootstrap for the others; examples are matched by content. "
        "Intervals are over examples: they do not cover the variation between seeds. p, Holm: corrected for "
        "each run over the tasks' main metrics; further metrics each over their own tests. Bold: p, Holm "
        "below 0.05." + smallest_p(main),
    )


def settings_table(runs: Sequence[RunRecord]) -> Table:
    """The settings in which the runs differ."""
    flat = [dict(_flat(run.settings)) for run in runs]
    names = dict.fromkeys(name for settings in flat for name in settings if name not in ("name", "output"))
    rows = []
    for name in names:
        values = [settings.get(name, ABSENT) for settings in flat]
        if len(set(values)) > 1 and all(flat):
            rows.append((name, tuple(Cell(value, differs=value != values[0]) for value in values)))
    header = ("setting", *(run.name for run in runs))
    title = "What differs in the configurations"
    return Table("settings", title, header, tuple(rows), colours=("", *_colours(runs)), monospace=True)


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, value as text) of every setting."""
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    elif prefix:
        yield prefix, "null" if tree is None else str(tree)


def _cell(value: Value) -> Cell:
    count = "" if value.count is None else f"n = {value.count:,}"
    details = ", ".join(filter(None, [interval(value.low, value.high, value.digits), count]))
    change = " ".join(filter(None, [f"Δ {value.change}", value.tested])) if value.change else ""
    return Cell(value.text, value.best, small="\n".join(filter(None, [change, details])))


def _colours(runs: Sequence[RunRecord]) -> list[str]:
    return [series_style(index)[0] for index in range(len(runs))]


def _heads(runs: Sequence[RunRecord]) -> list[Section]:
    """Attention of every guided head before and after, as a folded table; empty where no run has one."""
    masses: dict[tuple[int, int, str], list[list[str]]] = {}
    for index, run in enumerate(runs):
        for when, validation in enumerate((run.before, run.after)):
            for mass in validation.per_head if validation else ():
                key = (mass.layer, mass.head, mass.pattern)
                cells = masses.setdefault(key, [[ABSENT, ABSENT] for _ in runs])
                cells[index][when] = shown(mass.attention, ".3f")
    if not masses:
        return []
    rows: list[Row] = []
    for (layer, head, pattern), cells in sorted(masses.items()):
        changes = [Cell(f"{before} → {after}") for before, after in cells]
        rows.append((str(layer), (Cell(str(head)), Cell(pattern), *changes)))
    return [
        folded(
            Table(
                name="head-attention",
                title="Attention of every guided head, before → after",
                header=("layer", "head", "words", *(run.name for run in runs)),
                rows=tuple(rows),
                colours=("", "", "", *_colours(runs)),
            )
        )
    ]


def _provenance(runs: Sequence[RunRecord]) -> Section:
    """Folders, versions, fingerprints and configurations; differences from the first run are set off."""
    rows: list[Row] = [("folder", tuple(Cell(str(run.folder)) for run in runs))]
    groups = [""]
    for title, attribute in (("Versions", "versions"), ("Fingerprints", "fingerprints")):
        for name in dict.fromkeys(name for run in runs for name in getattr(run, attribute)):
            values = [getattr(run, attribute).get(name, ABSENT) for run in runs]
            # The fingerprint of the whole run differs between any two runs.
            cells = tuple(Cell(value, differs=name != "run" and value != values[0]) for value in values)
            rows.append((name, cells))
            groups.append(title)
    table = Table(
        name="records",
        title="",
        header=("", *(run.name for run in runs)),
        rows=tuple(rows),
        groups=tuple(groups),
        colours=("", *_colours(runs)),
        monospace=True,
    )
    configurations: list[Part] = [
        Section(f"config-{index}", f"Configuration of {run.name}", (Preformatted(run.config),), folded=True)
        for index, run in enumerate(runs)
        if run.config
    ]
    return Section("provenance", "Where the numbers come from", (table, *configurations))


def _csv(runs: Sequence[RunRecord], rows: Sequence[Measure]) -> str:
    """One line per run and measure."""
    columns = (
        "section", "measure", "run", "value", "low", "high", "count", "difference_to_first",
        "difference_interval_and_p", "doubt",
    )  # fmt: skip
    return csv_text(
        columns,
        (
            (
                row.section, row.name, run.name, value.text if value.number is None else value.number,
                value.low, value.high, value.count, value.difference, value.tested or None, value.doubt,
            )
            for row in rows
            for run, value in zip(runs, row.values, strict=True)
        ),
    )  # fmt: skip
