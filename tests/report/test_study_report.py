"""The report on a small study's real files: tables, sentences and figures."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from matplotlib.axes import Axes

from gaguide.report.outputs import make_report, render_report
from gaguide.report.study_analysis import attention_means, attention_table, share_table
from gaguide.report.study_comparisons import comparison_table, decisive, is_significant, verdict_table
from gaguide.report.study_figures import draw_attention, draw_loss, draw_tasks, millions
from gaguide.report.study_findings import study_cautions, study_findings
from gaguide.report.study_head_figure import draw_heads
from gaguide.report.study_heads import head_count_table
from gaguide.report.study_tables import mean_of, size_tables
from gaguide.report.style import BASELINE, COLOURS
from gaguide.study.analysis_records import HeadVerdict
from gaguide.study.records import HELD_OUT, LeftOut
from gaguide.study.study_records import StudyRecords


def test_a_table_for_each_size_has_the_papers_shape(study: StudyRecords) -> None:
    tables = size_tables(study)
    assert [table.title.split(" ")[0] for table in tables] == ["pico", "nano", "micro", "tiny"]
    assert tables[0].header == ("task", "original", "finetuned", "1-negation", "4-transition")
    for table in tables:
        for name, cells in table.rows:
            numbers = [float(cell.text) for cell in cells]
            best = max(numbers) if "acc" in name else min(numbers)
            assert [cell.best for cell in cells] == [number == best for number in numbers]
    papers = [cell.second for _, cells in tables[3].rows for cell in cells]
    assert papers == ["0.7382"] * 4 + [None] * 4
    assert not any(cell.second for _, cells in tables[0].rows for cell in cells)


def test_best_of_the_papers_numbers_is_marked_apart_from_ours(study: StudyRecords) -> None:
    papers = {"original": 0.1, "finetuned": 0.3, "1-negation": 0.2, "4-transition": 0.3}
    means = tuple(
        replace(mean, paper=papers[mean.experiment]) if mean.task == "memo-trap" else mean
        for mean in study.means
    )
    name, cells = size_tables(replace(study, means=means))[0].rows[0]
    assert "memo-trap" in name
    assert [cell.second_best for cell in cells] == [False, True, False, True]


def test_the_papers_numbers_are_told_apart_from_those_of_fewer_examples(study: StudyRecords) -> None:
    assert "Second number: the paper's, its best" in size_tables(study)[3].note
    limited = replace(study, study={**study.study, "evaluate": {"limit": 240}})
    assert "the paper's, of all examples, where ours is of the first 240" in size_tables(limited)[3].note


def test_attention_before_is_that_of_the_same_heads(study: StudyRecords) -> None:
    rows = study.attention[:3]
    mixed = [replace(rows[0], before=0.1, after=0.5), replace(rows[1], before=None, after=0.9)]
    assert attention_means(mixed) == (0.1, 0.5)
    assert attention_means(mixed[1:]) == (None, 0.9)


def test_one_seed_has_the_interval_over_examples(study: StudyRecords) -> None:
    one = tuple(row for row in study.results if row.seed == 0)
    means = tuple(replace(mean, seeds=1, low=None, high=None) for mean in study.means)
    single = replace(study, results=one, means=means)
    found = mean_of(single, "pico", "original", "memo-trap", "acc")
    row = next(r for r in one if (r.size, r.experiment, r.task) == ("pico", "original", "memo-trap"))
    assert found is not None and (found.low, found.high) == (row.low, row.high)
    assert "One seed; brackets: 95% interval over examples" in size_tables(single)[0].note
    mixed = tuple(replace(mean, seeds=1) if mean.experiment == "original" else mean for mean in study.means)
    note = size_tables(replace(study, means=mixed))[0].note
    assert "over seeds; where one seed is named, over its examples" in note


def test_one_seed_is_not_called_within_noise(study: StudyRecords) -> None:
    single = tuple(replace(row, seeds=1, low=None, high=None) for row in study.losses)
    text = " ".join(study_findings(replace(study, losses=single)))
    assert "without seeds to tell it from noise." in text and "within noise" not in text
    part = tuple(replace(row, low=None, high=None) if row.size == "tiny" else row for row in study.losses)
    text = " ".join(study_findings(replace(study, losses=part)))
    assert "beyond noise at pico, nano, micro, without seeds to tell it from noise at tiny." in text


def test_findings_count_what_measures_the_models_and_say_what_it_is_over(study: StudyRecords) -> None:
    seeds = [row for row in study.comparisons if row.level == "seeds" and row.baseline == "finetuned"]
    shown, constant = replace(seeds[0], p_holm=0.01), replace(seeds[1], constant=1, p_holm=0.01)
    rows = {id(seeds[0]): shown, id(seeds[1]): constant}
    changed = replace(study, comparisons=tuple(rows.get(id(row), row) for row in study.comparisons))
    text = " ".join(study_findings(changed))
    assert f"1 of {len(seeds) - 1} comparisons of tasks are beyond noise" in text
    assert "(better). Another 1 are of constant answers (‡) and measure nothing." in text
    single = replace(study, comparisons=tuple(
        replace(row, p_holm=0.01) for row in study.comparisons if row.level == "seed" and row.seed == 0
    ))  # fmt: skip
    assert "over the examples of one seed)" in " ".join(study_findings(single))


def test_cells_that_are_evaluated_but_not_done_are_named(study: StudyRecords) -> None:
    cells = tuple(
        replace(cell, state="pending") if cell.id.startswith("pico-4-transition") else cell
        for cell in study.cells
    )
    (text,) = [one for one in study_cautions(replace(study, cells=cells)) if "Not every cell" in one]
    assert "and of 3 that are evaluated but not done: pico-4-transition-0, " in text


def test_a_training_that_is_there_twice_is_named(study: StudyRecords) -> None:
    first, second = "pico-finetuned-0", "pico-finetuned-1"
    kept = [row for row in study.results if row.cell != second]
    kept += [replace(row, cell=second, seed=1) for row in study.results if row.cell == first]
    (text,) = [one for one in study_cautions(replace(study, results=tuple(kept))) if "twice" in one]
    assert text.startswith(f"{second} has the numbers of {first} in every task and on held-out text")
    assert not any("twice" in one for one in study_cautions(study))


def test_heads_that_cost_more_than_in_finetuned_are_counted(study: StudyRecords) -> None:
    heads = tuple(
        replace(one, p_over=0.01, over_finetuned=-0.02 if one.layer else 0.02) for one in study.head_verdicts
    )
    row = head_count_table(replace(study, head_verdicts=heads)).rows[0]
    assert (row[1][0].small, row[1][4].small) == ("3 seeds", "1 more, 1 less of 2 beyond noise")
    single = tuple(replace(one, seeds=1, test="t over blocks") for one in heads)
    assert head_count_table(replace(study, head_verdicts=single)).rows[0][1][0].small == "1 seed, over blocks"


def test_cells_made_by_different_code_are_pointed_out(study: StudyRecords) -> None:
    first, *rest = study.cells
    cells = (
        replace(first, fingerprints={"code": "a"}),
        *(replace(c, fingerprints={"code": "b"}) for c in rest),
    )
    assert "2 different fingerprints of their code" in " ".join(study_cautions(replace(study, cells=cells)))
    noted = replace(study, provenance={**study.provenance, "notes": ["chosen in other weights"]})
    assert "chosen in other weights." in study_cautions(noted)


def test_only_a_corrected_comparison_over_seeds_earns_a_mark(study: StudyRecords) -> None:
    assert "*" not in "".join(
        cell.text for table in size_tables(study) for _, row in table.rows for cell in row
    )
    key = ("pico", "1-negation", "finetuned", "memo-trap", "acc")
    row = decisive(study, *key)
    assert row is not None and row.level == "seeds" and not is_significant(row)
    assert not is_significant(replace(row, p=0.01, p_holm=0.2))
    changed = tuple(replace(other, p_holm=0.001) if other is row else other for other in study.comparisons)
    marked = replace(study, comparisons=changed)
    texts = [cell.text for _, cells in size_tables(marked)[0].rows for cell in cells]
    assert [text.endswith("*") for text in texts] == [False, False, True] + [False] * 5
    assert any("1 of 8 comparisons" in text and "pico, 1-negation" in text for text in study_findings(marked))


def test_sentences_answer_the_studys_questions(study: StudyRecords) -> None:
    text = " ".join(study_findings(study))
    assert "1-negation: attention of the heads guided to words went from 0.020 to 0.900" in text
    assert "finetuned: attention of the heads only measured on words went from 0.020 to 0.030" in text
    assert "pico +0.0100 (+0.20%)" in text and "beyond noise at pico, nano, micro, tiny" in text
    assert "Against finetuned, 0 of 8" in text and "4 flat, 4 positive" in text
    careful = " ".join(study_cautions(study))
    assert "is a target of" not in careful
    none = replace(study, attention=tuple(replace(row, before=None, after=None) for row in study.attention))
    assert "1-negation: no token of the held-out text is a target of" in " ".join(study_cautions(none))
    assert "1 failed of 48" in careful and "the loss is nan at step 7" in careful and "1,060,000" in careful


def test_comparisons_with_a_studys_own_baselines_are_shown(study: StudyRecords) -> None:
    """`against: [scratch]` and `baselines` of a study file name others than finetuned and original."""
    rows = tuple(replace(row, baseline="scratch") for row in study.comparisons if row.baseline == "finetuned")
    losses = tuple(replace(row, baseline="scratch") for row in study.losses)
    other = replace(study, comparisons=(*study.comparisons, *rows), losses=losses)
    assert other.index.baselines == (*study.index.baselines, "scratch")
    usual, shown = (len(comparison_table(one).rows) for one in (study, other))
    assert shown > usual and "memo-trap · pico · 1-negation against scratch" in dict(
        comparison_table(other).rows
    )
    twins = tuple(
        replace(one, twin="scratch" if one.experiment == "1-negation" else "finetuned", over_finetuned=0.01)
        for one in study.head_verdicts
    )
    heads = head_count_table(replace(study, head_verdicts=twins))
    assert "more than finetuned" in head_count_table(study).header and "more than unguided" in heads.header
    assert "twin without guidance: " in heads.note and "1-negation with scratch" in heads.note
    text = " ".join(study_findings(other))
    assert "Against scratch, 0 of 8" in text and "held-out loss against scratch pico +0.0100" in text


def test_other_tables_show_the_records(study: StudyRecords) -> None:
    assert {cell.text for _, cells in verdict_table(study).rows for cell in cells} == {"flat", "positive"}
    bent = tuple(replace(row, verdict="U-shaped", p_bend_holm=0.01) for row in study.verdicts)
    small = verdict_table(replace(study, verdicts=bent)).rows[0][1][0].small
    assert small.endswith("\nbend: p = 0.010"), "the p that decided"
    shares = share_table(study, "pieces")
    assert [(cell.text, cell.best) for cell in shares.rows[0][1]] == [("70%", True), ("15%", False)]
    layers = dict(attention_table(study).rows)["pico · layer 1"]
    assert [cell.text for cell in layers] == ["–", "0.020 → 0.030", "0.020 → 0.900", "0.020 → 0.900"]
    assert study.index.main_metrics == {"memo-trap": "acc", "synthetic-contrast": "loss"}


def test_figures_have_a_line_and_intervals_for_each_experiment(study: StudyRecords) -> None:
    tasks, loss, attention = draw_tasks(study), draw_loss(study), draw_attention(study)
    assert tasks is not None and loss is not None and attention is not None
    assert [text.get_text() for text in tasks.legends[0].get_texts()] == [
        "original", "finetuned", "1-negation", "4-transition",
    ]  # fmt: skip
    means = [mean_of(study, size, "finetuned", HELD_OUT, "lm_loss") for size in study.index.sizes]
    drawn = [list(line.get_ydata()) for line in loss.axes[0].lines]
    assert [mean.value for mean in means if mean] in drawn
    assert means[0] is not None and [means[0].low, means[0].high] in drawn
    labels = [label.get_text() for label in tasks.axes[0].get_xticklabels()]
    assert labels == ["pico\n92k", "nano\n230k", "micro\n530k", "tiny\n1.06M"]
    assert [millions(n) for n in (5, 124_439_808, 1_557_611_200)] == ["5", "124M", "1.56B"]


def test_the_figure_of_heads_shows_each_heads_attention_and_its_cost(study: StudyRecords) -> None:
    assert draw_heads(replace(study, head_verdicts=())) is None
    found = HeadVerdict(
        size="nano", experiment="finetuned", guided=False, layer=0, head=0, pattern="contrast", method="mean",
        test="t over seeds", seeds=3, before=0.02, after=0.03, p_moved=0.5, loss=0.01, low=-0.01, high=0.03,
        p_used=0.4, near=None, over_controls=None, over_finetuned=None, over_low=None, over_high=None,
        p_over=None, moved="not moved", used="not used",
    )  # fmt: skip
    guided = replace(
        found, experiment="1-negation", guided=True, after=0.9, moved="moved",
        loss=-0.01, low=-0.02, high=-0.005, used="harmful",
    )  # fmt: skip
    unknown = replace(guided, layer=1, before=None, loss=None)
    figure = draw_heads(replace(study, head_verdicts=(found, guided, unknown)))
    assert figure is not None
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["finetuned", "1-negation"]

    def drawn(ax: Axes, *x: float) -> str:
        return next(line.get_color() for line in ax.lines if list(line.get_xdata()) == list(x))

    assert (drawn(left, 0.02, 0.03), drawn(left, 0.02, 0.9)) == (BASELINE, COLOURS[1])
    assert (drawn(right, -0.01, 0.03), drawn(right, -0.02, -0.005)) == (BASELINE, COLOURS[0])
    assert (drawn(right, 0.01), drawn(right, -0.01)) == (BASELINE, COLOURS[0])


def test_intervals_over_seeds_and_over_examples_are_told_apart(study: StudyRecords) -> None:
    def tasks_chart(records: StudyRecords) -> Any:
        return next(one for one in make_report(records).charts if one.name == "tasks")

    def styles(records: StudyRecords) -> set[str]:
        figure = draw_tasks(records)
        assert figure is not None
        lines = [line for ax in figure.axes for line in ax.lines]
        return {
            line.get_linestyle() for line in lines if len(set(line.get_xdata())) == 1 < len(line.get_xdata())
        }

    assert "Dotted" not in tasks_chart(study).caption
    assert styles(study) == {"-"}
    # One experiment with a single model of each size.
    once = replace(
        study,
        results=tuple(row for row in study.results if row.experiment != "original" or row.seed == 0),
        means=tuple(
            replace(row, seeds=1, low=None, high=None) if row.experiment == "original" else row
            for row in study.means
        ),
    )
    assert "Solid bars: 95% interval over seeds. Dotted bars: 95% interval over the examples" in (
        tasks_chart(once).caption
    )
    assert styles(once) == {"-", "--"}  # matplotlib's name of every pattern of dashes
    table = size_tables(once)[0]
    assert table.rows[0][1][0].small.endswith("1 seed")
    assert "where one seed is named, over its examples" in table.note


def test_what_is_left_out_cut_or_dropped_stands_where_the_numbers_are(study: StudyRecords) -> None:
    first = study.cells[4]
    left = LeftOut(first.id, first.size, first.experiment, first.seed, "memo-trap", None, 2, 60, "2 of 60")
    key = (first.size, first.experiment, "memo-trap", "acc")
    changed = replace(
        study,
        cells=tuple(replace(one, steps=900, dropped_steps=7 if one is first else 0) for one in study.cells),
        means=tuple(
            replace(row, seeds=2, left_out=1, truncated=12)
            if (row.size, row.experiment, row.task, row.metric) == key
            else row
            for row in study.means
        ),
        results=tuple(replace(row, truncated=12) if row.cell == first.id else row for row in study.results),
        verdicts=tuple(replace(row, left_out=1, slope_detectable=0.02) for row in study.verdicts),
        left_out=(left,),
    )
    report = make_report(changed)
    column = (
        study.index.sizes.index(first.size),
        1 + list(report.tables[0].header[1:]).index(first.experiment),
    )
    cell = size_tables(changed)[column[0]].rows[0][1][column[1] - 1]
    assert cell.small.splitlines()[1:] == ["2 of 3 seeds", "12 cut"]
    assert "detectable 0.020\n1 left out" in verdict_table(changed).rows[0][1][0].small
    text = " ".join(report.cautions)
    assert f"Steps were dropped because their gradient was not finite: {first.id} 7." in text
    assert "memo-trap: up to 12 of 60 prompts were cut" in text
    captions = {one.name: one.caption for one in report.charts}
    assert "Left out: numbers of 1 cell," in captions["tasks"] and "Left out" not in captions["loss"]
    everything = make_report(replace(changed, left_out=(replace(left, task=None),)))
    assert all("Left out" in one.caption for one in everything.charts if one.name in ("tasks", "loss"))
    page = render_report(report, "html", "s")["s.html"].decode()
    assert "7 of 900" in page


class _Counted(tuple):
    """Rows that count how often one of them is looked at."""

    seen = 0

    def __iter__(self) -> Iterator[Any]:
        for row in super().__iter__():
            _Counted.seen += 1
            yield row


def _looks(study: StudyRecords) -> float:
    """How often a report looks at each row of the study's records."""
    names = ("cells", "results", "means", "comparisons", "verdicts", "shares", "gains", "attention", "losses",
             "changes", "left_out")  # fmt: skip
    tables: dict[str, Any] = {name: _Counted(getattr(study, name)) for name in names}
    counted = replace(study, **tables)
    _Counted.seen = 0
    report = make_report(counted)
    for kind in ("md", "latex", "html", "csv"):
        render_report(report, kind, "r")
    return _Counted.seen / sum(len(getattr(study, name)) for name in names)


def test_work_grows_with_the_number_of_rows_only(study: StudyRecords) -> None:
    """Twice the tasks, or twice the experiments, look at each row as often as before."""

    def more(name: str, times: int) -> StudyRecords:
        def copies(rows: tuple) -> tuple:
            return tuple(
                replace(row, **{name: getattr(row, name) + "x" * at}) if getattr(row, name, None) else row
                for row in rows
                for at in range(times if getattr(row, name, None) else 1)
            )

        tables: dict[str, Any] = {
            part: copies(getattr(study, part))
            for part in ("cells", "results", "means", "comparisons", "verdicts", "shares", "gains",
                         "attention", "losses", "changes")
        }  # fmt: skip
        return replace(study, **tables)

    before = _looks(study)
    assert _looks(more("task", 2)) < 1.3 * before
    assert _looks(more("experiment", 2)) < 1.3 * before


def test_constant_answers_are_marked_in_tables_verdicts_and_cautions(study: StudyRecords) -> None:
    def doubted(row: Any, **changes: Any) -> Any:
        is_one = (row.task, row.metric, row.experiment) == ("memo-trap", "acc", "1-negation")
        return replace(row, **changes) if is_one else row

    assert not any("‡" in table.note for table in size_tables(study))
    marked = replace(
        study,
        results=tuple(doubted(row, doubt="constant") for row in study.results),
        means=tuple(doubted(row, constant=1, value=0.99) for row in study.means),
        comparisons=tuple(doubted(row, constant=1) for row in study.comparisons),
        verdicts=tuple(doubted(row, constant=2) for row in study.verdicts),
    )
    for table in size_tables(marked):
        (cells,) = (cells for name, cells in table.rows if name.startswith("memo-trap"))
        assert [cell.text.rstrip("*†").endswith("‡") for cell in cells] == [False, False, True, False]
        assert not cells[2].best  # the largest number, but of the data
        assert "‡ One answer or position is chosen in at least 95%" in table.note
    (cells,) = (cells for name, cells in verdict_table(marked).rows if name.startswith("memo-trap"))
    assert cells[2].text == "flat‡" and "‡ Some of the models" in verdict_table(marked).note
    assert any(
        "memo-trap" in text and "one answer in at least 95%" in text for text in study_cautions(marked)
    )
    report = make_report(marked)
    latex = render_report(report, "latex", "s")["s.tex"].decode()
    assert r"0.990$\ddagger$" in latex and r"flat$\ddagger$" in latex
    rows = csv.DictReader(io.StringIO(render_report(report, "csv", "s")["s-results.csv"].decode()))
    assert {row["experiment"] for row in rows if row["doubt"] == "constant"} == {"1-negation"}
