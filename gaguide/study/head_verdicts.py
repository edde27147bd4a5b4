"""Are the guided heads used? From the ablations of a study's cells to verdicts over seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from gaguide.ablate.effects import movement, usage
from gaguide.ablate.records import Effect, read_ablation
from gaguide.grouping import grouped
from gaguide.stats.difference import Paired
from gaguide.stats.paired import holm, over_seeds
from gaguide.study.analysis_records import HeadKnockOut, HeadVerdict
from gaguide.study.file import FINETUNED
from gaguide.study.grid import Grid
from gaguide.study.records import KNOCK_OUT, LeftOut
from gaguide.study.state import ablation_file, needs_ablation, stale_ablation


def knock_outs(grid: Grid, left: Sequence[LeftOut] = ()) -> Iterator[HeadKnockOut]:
    """The removed heads of every cell with the study's settings, without cells that are left out."""
    diverged = {row.cell for row in left if row.task is None}
    for cell in grid.cells:
        path = ablation_file(grid.path(cell))
        if cell.id in diverged or not path.is_file() or needs_ablation(grid, cell) or grid.ablation is None:
            continue
        record = read_ablation(path.parent)
        for head in record.models[0].with_role("guided"):
            effects = head.methods[record.deciding]
            assert cell.run is not None
            yield HeadKnockOut(
                cell=cell.id,
                size=cell.size,
                experiment=cell.experiment,
                seed=cell.seed,
                guided=cell.run.guidance.weight > 0,
                layer=head.layer,
                head=head.head,
                pattern=head.pattern,
                method=record.deciding,
                before=head.attention_before,
                after=head.attention,
                p_moved=None if head.rise is None else head.rise.p_holm,
                loss=effects.loss.difference,
                low=effects.loss.low,
                high=effects.loss.high,
                p_used=effects.loss.p_holm,
                near=effects.near.difference,
                over_controls=None if effects.over_controls is None else effects.over_controls.difference,
                moved=head.moved,
                used=head.used,
            )


def stale_knock_outs(grid: Grid) -> Iterator[LeftOut]:
    """The cells whose heads are in no verdict because their ablation does not match the study."""
    for cell in grid.cells:
        reason = stale_ablation(grid, cell) if needs_ablation(grid, cell) else None
        if reason is not None:
            reason += "; gaguide study run removes its heads again"
            yield LeftOut(cell.id, cell.size, cell.experiment, cell.seed, KNOCK_OUT, None, None, None, reason)


def head_verdicts(
    rows: Sequence[HeadKnockOut], twin_of: Mapping[str, str | None] | None = None
) -> list[HeadVerdict]:
    """A verdict on each head of each size and experiment, over its seeds.

    twin_of: the experiment without guidance that each is compared with; without it, `finetuned`.
    """
    families: dict[tuple[str, str], dict[tuple[int, int], list[HeadKnockOut]]] = {}
    for row in rows:
        heads = families.setdefault((row.size, row.experiment), {})
        heads.setdefault((row.layer, row.head), []).append(row)
    losses = {name: dict(found) for name, found in
              grouped((row.experiment, (_place(row), row.loss)) for row in rows).items()}  # fmt: skip
    verdicts = []
    for (_, experiment), heads in families.items():
        twin = (FINETUNED if experiment != FINETUNED else None) if twin_of is None else twin_of[experiment]
        found = _family(list(heads.values()), losses.get(twin or "", {}))
        verdicts += [replace(one, twin=twin) for one in found]
    return verdicts


_Place = tuple[str, int | None, int, int, str]
_Twins = dict[_Place, float | None]


def _place(row: HeadKnockOut) -> _Place:
    """Key of a removal with the same meaning in two experiments: edges are those to one pattern's targets."""
    pattern = row.pattern if row.method == "edges" else ""
    return row.size, row.seed, row.layer, row.head, pattern


def _family(heads: Sequence[Sequence[HeadKnockOut]], twins: _Twins) -> list[HeadVerdict]:
    """Verdicts on the heads of one size and experiment, Holm-corrected over them."""
    found = [_verdict(rows, twins) for rows in heads]
    corrected = [holm([getattr(one, name) for one in found]) for name in ("p_moved", "p_used", "p_over")]
    return [
        _decided(one if one.test == "t over blocks" else replace(one, p_moved=moved, p_used=used), over)
        for one, moved, used, over in zip(found, *corrected, strict=True)
    ]


def _decided(one: HeadVerdict, p_over: float | None) -> HeadVerdict:
    rise = None if one.before is None or one.after is None else one.after - one.before
    return replace(
        one,
        p_over=p_over,
        moved=movement(None if rise is None else Effect(rise, p_holm=one.p_moved)),
        used=usage(Effect(one.loss, p_holm=one.p_used)),
    )


def _verdict(rows: Sequence[HeadKnockOut], twins: _Twins) -> HeadVerdict:
    """One head's numbers, p values not yet corrected over heads (those over blocks already are)."""
    one, single = rows[0], len(rows) == 1
    losses = _all([row.loss for row in rows])
    rises = _all(
        [None if row.after is None or row.before is None else row.after - row.before for row in rows]
    )
    over = [
        row.loss - twin
        for row in rows
        if row.loss is not None
        and (twin := twins.get(_place(row))) is not None
    ]  # fmt: skip
    loss = over_seeds(losses) if losses else Paired(0.0, None, None, None)
    beyond = over_seeds(over) if over else Paired(0.0, None, None, None)
    return HeadVerdict(
        size=one.size,
        experiment=one.experiment,
        guided=one.guided,
        layer=one.layer,
        head=one.head,
        pattern=one.pattern,
        method=one.method,
        test="t over blocks" if single else "t over seeds",
        seeds=len(rows),
        before=_mean([row.before for row in rows]),
        after=_mean([row.after for row in rows]),
        p_moved=one.p_moved if single else (over_seeds(rises).p if rises else None),
        loss=loss.difference if losses else None,
        low=one.low if single else loss.low,
        high=one.high if single else loss.high,
        p_used=one.p_used if single else loss.p,
        near=_mean([row.near for row in rows]),
        over_controls=_mean([row.over_controls for row in rows]),
        over_finetuned=beyond.difference if over else None,
        over_low=beyond.low,
        over_high=beyond.high,
        p_over=beyond.p,
        seeds_over=len(over),
        moved="not compared",
        used="not measured",
    )


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean; None unless all have a number."""
    known = _all(values)
    return fmean(known) if known else None


def _all(values: Sequence[float | None]) -> list[float]:
    """The numbers; none unless all seeds have one, as the rest would not represent the seeds."""
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else []
