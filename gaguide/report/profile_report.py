"""The report on a profile of heads: behaviour, effect near the words, and the plans chosen by rule."""

from __future__ import annotations

from gaguide.heads.records import HeadProfile, ProfileRecord
from gaguide.numbers import fixed
from gaguide.report.document import Cell, Chart, Report, Row, Section, Table, folded
from gaguide.report.profile_figures import draw_agreement, draw_profile
from gaguide.report.text import excludes_zero, head_name, interval, records_csv, shown, tally, words

_SHOWN = 12
_UNCORRECTED = (
    "Bold: the 95% interval over blocks excludes 0, not corrected for the number of heads. The largest of "
    "many are overestimated on the text by which they are ranked."
)


def profile_report(record: ProfileRecord) -> Report:
    """The report on a profile."""
    chosen, most, every = chosen_table(record), _top_table(record), _head_table(record)
    maps = Chart(
        "profile",
        "By layer and head",
        f"Attention on {record.pattern}; estimated change of the loss near it without the head (attribution "
        "patching), and of all tokens: red where the model loses. Framed: chosen as most used.",
        lambda: draw_profile(record),
    )
    agreement = Chart(
        "agreement",
        "Estimate and exact change",
        "Loss near the words without a head: estimated by one gradient, and exact with its 95% interval.",
        lambda: draw_agreement(record),
    )
    return Report(
        title=f"Heads of {record.name} for {record.pattern}",
        findings=tuple(_findings(record)),
        cautions=tuple(f"{note}." for note in record.notes),
        summary=chosen,
        tables=(chosen, most, every),
        charts=(maps, agreement),
        body=(chosen, maps, most, agreement, folded(every), _provenance(record)),
        csv_files=lambda: {"heads": records_csv(HeadProfile, record.heads)},
    )


def _findings(record: ProfileRecord) -> list[str]:
    near = "not finite" if record.near_loss is None else f"{record.near_loss:.4f}"
    whole = "not finite" if record.loss is None else f"{record.loss:.4f}"
    sentences = [
        f"{len(record.heads)} heads: {tally((head.type for head in record.heads), ', ')}.",
        f"Held-out loss {whole} over {record.tokens:,} tokens, {near} over the {record.near_tokens:,} on a "
        "word or up to 20 tokens after it.",
    ]  # fmt: skip
    if record.agreement is not None:
        removed = sum(head.near is not None for head in record.heads)
        sentences.append(
            f"Over the {removed} heads that were removed, those with the largest and the smallest estimates, "
            "estimate and exact change near the words have a rank correlation of "
            f"{record.agreement:.2f}; among heads that differ less it is lower."
        )
    return sentences


def chosen_table(record: ProfileRecord) -> Table:
    """The heads of each rule, and the behaviour that guiding them would displace."""
    by_key = {(head.layer, head.head): head for head in record.heads}
    rows: list[Row] = []
    groups: list[str] = []
    for chosen in record.chosen:
        for key in chosen.heads:
            head = by_key[key]
            rows.append((head_name(head), (*_effects(head), Cell(head.type), Cell(head.displaces))))
            groups.append(f"{chosen.name}: {chosen.rule}")
    return Table(
        "chosen",
        "Heads chosen by rule",
        ("", "attention", "near the words", "all tokens", "behaviour", "what guiding it would displace"),
        tuple(rows),
        "Changes of held-out loss without the head, in nats per token: exact (its mean in its place) with a "
        "95% interval over blocks, or else estimated (est.). "
        + _UNCORRECTED
        + " plan.yaml has these plans as "
        "experiments of a study.",
        groups=tuple(groups),
    )


def _top_table(record: ProfileRecord) -> Table:
    ranked = sorted(
        record.heads, key=lambda head: -(head.near if head.near is not None else head.near_estimate)
    )
    rows = tuple(
        (head_name(head), (*_effects(head), Cell(fixed(head.near_estimate, 4, "+")), Cell(head.type)))
        for head in ranked[:_SHOWN]
    )
    return Table(
        "most-used",
        "Heads that the words need most",
        ("", "attention", "near the words", "all tokens", "estimate near", "behaviour"),
        rows,
        "Ranked by the change of the loss near the words without the head. " + _UNCORRECTED,
    )


def _head_table(record: ProfileRecord) -> Table:
    rows = tuple(
        (
            head_name(head),
            (
                *_effects(head),
                *(Cell(shown(value, ".3f"))
                  for value in (head.first, head.previous, head.same, head.induction, head.copying,
                                head.output_norm, head.target_norm)),
                Cell(head.type),
            ),
        )
        for head in record.heads
    )  # fmt: skip
    return Table(
        "heads",
        "Every head",
        ("", "attention", "near the words", "all tokens", "first token", "token before", "own token",
         "induction", "copying", "norm", "norm from the words", "behaviour"),
        rows,
        "First token, token before, own token: mean attention there. Induction: attention on the token after "
        "the earlier occurrence in repeated random tokens. Copying: standard deviations by which a key's "
        "value raises its own token.",
    )  # fmt: skip


def _effects(head: HeadProfile) -> tuple[Cell, Cell, Cell]:
    return (
        Cell(shown(head.mass, ".3f")),
        _effect(head.near, head.near_low, head.near_high, head.near_estimate),
        _effect(head.loss, head.loss_low, head.loss_high, head.loss_estimate),
    )


def _effect(exact: float | None, low: float | None, high: float | None, estimate: float) -> Cell:
    if exact is None:
        return Cell(fixed(estimate, 4, "+"), small="est.")
    return Cell(fixed(exact, 4, "+"), excludes_zero(low, high), small=interval(low, high, 4))


def _provenance(record: ProfileRecord) -> Section:
    values = {"model": record.model, "mode": record.mode} | dict(record.settings) | dict(record.versions)
    rows = tuple((name, (Cell(words(value)),)) for name, value in values.items())
    return Section(
        "provenance", "Where the numbers come from", (Table("settings", "", ("", ""), rows, monospace=True),)
    )
