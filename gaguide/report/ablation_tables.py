"""Tables of an ablation: verdicts with their tests, ways of removing compared, norms, models side by side,
tasks, attention on the tasks' own spans."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gaguide.ablate.records import (
    AblationRecord,
    Effect,
    HeadRecord,
    MethodEffects,
    ModelRecord,
    Role,
    SpanAttention,
)
from gaguide.grouping import grouped
from gaguide.report.document import Cell, Row, Table
from gaguide.report.text import ABSENT, before_after, change, head_name, interval, known_mean, p_words, shown
from gaguide.stats.groups import ALPHA

_DIGITS = 4


def verdict_table(records: Sequence[AblationRecord]) -> Table:
    """Verdicts on every guided head: is attention moved, is the head used, each with its test."""
    rows: list[Row] = []
    groups: list[str] = []
    for record, model in _models(records):
        for head in model.with_role("guided"):
            rows.append((head_name(head), _verdict_cells(head, record.deciding)))
        if record.deciding in model.together:
            cells = _effect_cells(model.together[record.deciding])
            rows.append(("all of these at once", (Cell(ABSENT), Cell(ABSENT), *cells, Cell(ABSENT))))
        groups += [model.name] * (len(rows) - len(groups))
    how = ", ".join(dict.fromkeys(record.deciding for record in records))
    return Table(
        "verdicts",
        "Is the guided head used?",
        ("", "words", "attention", "loss without it", "near cues", "more than controls", "more than first",
         "verdict"),
        tuple(rows),
        f"Removed by: {how}. Changes of held-out loss in nats per token, with 95% intervals and p values "
        "over blocks of text, Holm-corrected over a model's heads of the plan; bold: p < 0.05. Near cues: "
        "predicted tokens on a guided word and up to 20 after it. More than controls: minus the mean of "
        "random other heads of the same layer. More than first: minus the same head's in the first model. "
        "Used: the loss rises without the head beyond noise; harmful: it falls; not used: neither; not "
        "tested: a single block. "
        "Two heads that do the same can each be removed at no cost: compare all at once.",
        groups=tuple(groups),
        caption="Is the guided head used? (change of held-out loss without it)",
    )  # fmt: skip


def summary_table(records: Sequence[AblationRecord]) -> Table:
    """The verdicts in the width of a terminal."""
    whole = verdict_table(records)
    wanted = [whole.header.index(name) - 1 for name in ("attention", "loss without it", "verdict")]
    rows = tuple((name, tuple(cells[at] for at in wanted)) for name, cells in whole.rows)
    header = ("", "attention", "loss without it", "verdict")
    return Table(whole.name, whole.title, header, rows, groups=whole.groups, caption=whole.caption)


def _models(records: Sequence[AblationRecord]) -> Iterator[tuple[AblationRecord, ModelRecord]]:
    return ((record, model) for record in records for model in record.models)


def _verdict_cells(head: HeadRecord, deciding: str) -> tuple[Cell, ...]:
    effects = head.methods[deciding]
    rise = head.rise
    moved = shown(head.attention, ".3f")
    if head.attention is not None and head.attention_before is not None:
        moved = before_after(head.attention_before, head.attention)
    is_moved = rise is not None and rise.p_holm is not None and rise.p_holm < ALPHA
    small = "" if rise is None else p_words(rise.p_holm)
    return (
        Cell(head.pattern),
        Cell(moved, is_moved, small=small),
        *_effect_cells(effects),
        Cell(head.verdict, head.used in ("used", "harmful")),
    )


def _effect_cells(effects: MethodEffects) -> list[Cell]:
    changes = (effects.loss, effects.near, effects.over_controls, effects.over_first)
    return [effect_cell(one) for one in changes]


def effect_cell(effect: Effect | None, digits: int = _DIGITS) -> Cell:
    """A change with its interval and p value."""
    if effect is None or effect.difference is None:
        return Cell(ABSENT)
    p = effect.p if effect.p_holm is None else effect.p_holm
    lines = [interval(effect.low, effect.high, digits), p_words(p)]
    return Cell(
        change(effect.difference, digits), p is not None and p < ALPHA, small="\n".join(filter(None, lines))
    )


def methods_table(records: Sequence[AblationRecord]) -> Table:
    """Every way of removing a head, on all tokens and near cues; empty with a single way."""
    rows: list[Row] = []
    groups: list[str] = []
    methods = list(dict.fromkeys(method for record in records for method in record.settings["methods"]))
    heads = [head for _, model in _models(records) for head in model.with_role("guided")]
    for _, model in _models(records):
        for head in model.with_role("guided"):
            effects = (head.methods.get(method) for method in methods)
            pairs = ((one.loss, one.near) if one else (None, None) for one in effects)
            rows.append((head_name(head), tuple(effect_cell(one) for pair in pairs for one in pair)))
        groups += [model.name] * (len(rows) - len(groups))
    columns = [f"{method}{where}" for method in methods for where in ("", ", near cues")]
    return Table(
        "methods",
        "Ways of removing a head",
        ("", *columns),
        tuple(rows) if len(methods) > 1 else (),
        "Mean: the head writes its mean over this text; zero: nothing, so that the constant which it adds to "
        "every token is removed too; resample: its output in another block; edges: it does not attend to its "
        f"words. {_methods_p(heads)}; bold: p < 0.05.",
        groups=tuple(groups) if len(methods) > 1 else (),
    )


def _methods_p(heads: Sequence[HeadRecord]) -> str:
    """What the p values of all ways are; in records of older versions only those of the deciding one are
    corrected."""
    effects = [of.loss for head in heads for of in head.methods.values()]
    if all(one.p is None or one.p_holm is not None for one in effects):
        return "p values are Holm-corrected over a model's heads of the plan, for each column"
    return "p values of ways other than the deciding one are not corrected"


def norm_table(records: Sequence[AblationRecord]) -> Table:
    """Attention of heads on their words, and norms of their output from there; controls as means."""
    rows: list[Row] = []
    groups: list[str] = []
    for _, model in _models(records):
        rows += [_norm_row(head_name(head), [head]) for head in model.with_role("guided")]
        if controls := model.with_role("control"):
            rows.append(_norm_row(f"mean of {len(controls)} controls", controls))
        groups += [model.name] * (len(rows) - len(groups))
    return Table(
        "norms",
        "What heads write",
        ("", "attention on the words", "norm of output", "weighted norm of values", "of it from the words"),
        tuple(rows),
        "Norms after the output projection, in the residual stream. Weighted norms: attention times norm of "
        "the value, summed over keys, mean over queries that see a word. A head that attends to a word and "
        "writes nothing from it is a sink.",
        groups=tuple(groups),
    )


def _norm_row(name: str, heads: Sequence[HeadRecord]) -> Row:
    attention = known_mean([head.attention for head in heads])
    weighted = known_mean([head.weighted_norm for head in heads])
    target = known_mean([head.target_norm for head in heads])
    share = None if target is None or not weighted else target / weighted
    values = (attention, known_mean([head.output_norm for head in heads]), weighted)
    return name, (*(Cell(shown(value, ".3f")) for value in values), Cell(shown(share, ".1%")))


def side_table(records: Sequence[AblationRecord]) -> Table:
    """The deciding change of loss of every removed head, a column for each model; empty for one model."""
    columns = [model for _, model in _models(records)]
    deciding = [record.deciding for record, _ in _models(records)]
    places: dict[tuple[int, int], dict[int, HeadRecord]] = {}
    for at, model in enumerate(columns):
        for head in model.heads:
            places.setdefault((head.layer, head.head), {})[at] = head
    rows = []
    for _, found in sorted(places.items()):
        cells = [
            _side_cell(found[at].methods[deciding[at]].loss, found[at].role) if at in found else Cell(ABSENT)
            for at in range(len(columns))
        ]
        rows.append((head_name(next(iter(found.values()))), tuple(cells)))
    return Table(
        "heads",
        "Loss without each head, models side by side",
        ("", *(model.name for model in columns)),
        tuple(rows) if len(columns) > 1 else (),
        "Change of held-out loss; roles differ where models are guided differently.",
    )


def _side_cell(effect: Effect, role: Role) -> Cell:
    cell = effect_cell(effect)
    return Cell(cell.text, cell.best, small=f"{role}\n{cell.small}")


def task_table(records: Sequence[AblationRecord]) -> Table:
    """Changes of the tasks' metrics without each head, by the deciding method or the first that can."""
    rows: list[Row] = []
    groups: list[str] = []
    for record, model in _models(records):
        for head in model.heads:
            method = next((name for name in record.settings["methods"] if head.methods[name].tasks), None)
            if method is None or head.role == "other":
                continue
            for task, metrics in head.methods[method].tasks.items():
                for metric, effect in metrics.items():
                    with_it = shown(model.tasks.get(task, {}).get(metric), ".4f")
                    cells = Cell(head.role), Cell(with_it), effect_cell(effect), Cell(f"{effect.count:,}")
                    rows.append((f"{task} · {metric} · {head_name(head)} ({method})", cells))
        groups += [model.name] * (len(rows) - len(groups))
    return Table(
        "tasks",
        "Tasks without each head",
        ("", "role", "with it", "change", "examples"),
        tuple(rows),
        "McNemar for accuracies, a t-test of the paired differences for others, over examples or "
        "their groups; "
        "p values are not corrected for the number of rows.",
        groups=tuple(groups),
    )


def span_table(records: Sequence[AblationRecord]) -> Table:
    """Attention of guided heads and controls on the tasks' own spans; without rows where no task has any."""
    rows: list[Row] = []
    groups: list[str] = []
    for _, model in _models(records):
        for head in model.heads:
            spans = head.spans if head.role != "other" else ()
            for (task, mark), some in grouped(((one.task, one.mark), one) for one in spans).items():
                name = f"{task} · {mark} · {head_name(head)}"
                rows.append((name, (Cell(head.role), *_span_cells(some))))
        groups += [model.name] * (len(rows) - len(groups))
    return Table(
        "spans",
        "Attention on the tasks' own spans",
        ("", "role", "from the continuation", "change", "from all that see them", "change", "examples"),
        tuple(rows),
        "Mean over examples of each one's mean attention on the tokens that the task's data mark: from the "
        "queries that predict the continuation, and from all queries of the prompt and the continuation that "
        "see a marked token; 95% t-intervals over examples or their groups. Change: from the model that "
        "attention is compared with, paired by example, p of heads of the plan Holm-corrected over them; "
        "bold: p < 0.05. Examples whose prompt was truncated inside a span are left out.",
        groups=tuple(groups),
    )


def _span_cells(some: Sequence[SpanAttention]) -> Iterator[Cell]:
    """The cells of one head and mark; `some` in the order of `Queries`."""
    for one in some:
        yield Cell(shown(one.attention, ".3f"), small=interval(one.low, one.high))
        yield effect_cell(one.rise, 3)
    first, queries = some[0], " and ".join(f"{one.query_count:,}" for one in some)
    truncated = [f"{first.cut:,} truncated"] if first.cut else []
    small = "\n".join([*truncated, f"queries: {queries}"])
    yield Cell(f"{first.examples:,} of {first.of:,}", small=small)
