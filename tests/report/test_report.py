"""Reports on run folders that the test writes: numbers, differences, escaping, missing records."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from gaguide.cli import report as command
from gaguide.errors import UserError
from gaguide.figures import render
from gaguide.report import make_report, read_runs, render_report
from gaguide.report.run_figures import draw_course, draw_curves, draw_heads
from gaguide.report.run_findings import cautions, findings
from gaguide.report.run_measures import Measure, measures
from gaguide.report.run_records import RunRecord
from gaguide.report.run_report import settings_table
from tests.report.synthetic import write_run

HOSTILE = "<script>alert('x')</script>|*b*&[c](d)"


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    """An unguided run and a guided one."""
    return [
        write_run(tmp_path / "plain", "unguided", scores={"memo": 0.61, "neqa": 0.5}),
        write_run(
            tmp_path / "guided", "guided", experiment="4-transition", attention=(0.02, 0.953),
            loss=(7.6, 4.777), scores={"memo": 0.58},
        ),
    ]  # fmt: skip


def _written(runs: list[RunRecord], kind: str) -> str:
    """The only file of a report on `runs` in one format."""
    (content,) = render_report(make_report(runs), kind, "r").values()
    return content.decode("utf-8")


def _row(rows: list[Measure], section: str, name: str) -> Measure:
    return next(row for row in rows if section in row.section and name in row.name)


def _command(*args: object) -> object:
    app = typer.Typer()
    app.command()(command.report)
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_differences_are_to_the_first_run(pair: list[Path]) -> None:
    rows = measures(read_runs(pair))
    loss = _row(rows, "Language", "after").values
    assert (loss[0].text, loss[0].change, loss[0].best) == ("4.7710", None, False)
    assert (loss[1].text, loss[1].change, loss[1].best) == ("4.7770", "+0.0060 (+0.13%)", False)
    attention = _row(rows, "Attention", "after").values
    assert (attention[1].text, attention[1].change, attention[1].best) == ("0.953", "+0.923", False)
    assert [value.text for value in _row(rows, "Attention", "rise").values] == ["+0.010", "+0.933"]
    memo = _row(rows, "Tasks", "memo").values
    assert "(chance 0.500)" in _row(rows, "Tasks", "memo").name
    assert (memo[1].change, memo[1].low, memo[1].count) == ("-0.030", pytest.approx(0.48), 100)
    assert [value.text for value in _row(rows, "Tasks", "neqa").values] == ["0.500", "–"]


def test_equal_numbers_have_no_best(tmp_path: Path) -> None:
    runs = read_runs([write_run(tmp_path / name, name) for name in "ab"])
    assert not any(value.best for row in measures(runs) for value in row.values)


def test_a_number_that_rounds_to_zero_has_no_minus(tmp_path: Path) -> None:
    runs = read_runs([write_run(tmp_path / "a", "a", attention=(0.02, 0.0199))])
    assert _row(measures(runs), "Attention", "rise").values[0].text == "+0.000"
    both = [write_run(tmp_path / name, name, loss=(7.6, loss)) for name, loss in (("b", 4.0), ("c", 3.99999))]
    assert _row(measures(read_runs(both)), "Language", "after").values[1].change == "+0.0000 (+0.00%)"


def test_findings_state_rise_and_cost(pair: list[Path]) -> None:
    sentences = findings(read_runs(pair))
    assert "went from 0.020 to 0.953 (unguided: 0.030)" in sentences[1]
    assert "+0.0060 (+0.13%) against unguided" in sentences[1]
    assert "against" not in sentences[0]


def test_runs_that_differ_in_more_than_guidance_are_pointed_out(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", "a")
    assert cautions(read_runs([first, write_run(tmp_path / "b", "b", loss=(7.6, 4.5))])) == []
    prints = {"data": "d2", "tokenizer": "t2", "order": "o1", "code": "c2"}
    other = write_run(tmp_path / "c", "c", loss=(7.9, 4.8), tokens=5, fingerprints=prints)
    found = " ".join(cautions(read_runs([first, other])))
    assert "same code" not in found, "the first run does not say by what code it was made"
    for what in ("training data", "tokenizer", "training tokens", "loss before"):
        assert what in found
    assert "order" not in found


def test_a_run_that_is_another_one_again_is_pointed_out(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name, name) for name in ("a", "b")]
    (text,) = cautions(read_runs(folders))
    assert text.startswith("b has the losses of a at each of 30 logged steps and on held-out text")
    path = folders[1] / "metrics.jsonl"
    path.write_text(path.read_text().replace('"step": 300, ', '"step": 301, '))
    assert cautions(read_runs(folders)) == []


def test_a_run_without_a_tracker_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    folder, page = write_run(tmp_path / "a", "a"), tmp_path / "r.md"
    with pytest.raises(UserError, match="is not a run that was sent"):
        command.report([folder], [page], attach=True)
    assert not page.exists()


def test_losses_on_blocks_of_another_length_are_pointed_out(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / name, name, measure=measure) for name, measure in zip("abc", ("m", "n", None))
    ]
    runs = read_runs(folders)
    (text,) = cautions(runs)
    assert "not comparable" in text and text.endswith("b against a.")
    for section in ("Language", "Attention"):
        changes = [value.change for value in _row(measures(runs), section, "after").values]
        assert changes[1] is None and changes[2] is not None, "c does not say what it was measured on"
    assert ["against a" in sentence for sentence in findings(runs)] == [False, False, True]


def test_attention_of_other_heads_or_words_is_not_compared(tmp_path: Path) -> None:
    """A mean over other heads is another quantity, also within a run whose plan a resume has changed."""
    words = {"contrast": ["not", "but"]}
    folders = [write_run(tmp_path / name, name, attention=(0.02, 0.5), patterns=words) for name in "abcd"]
    for folder, change in zip(folders[1:], ("words", "head", "before"), strict=True):
        summary = json.loads((folder / "summary.json").read_text())
        if change == "words":
            summary["patterns"] = {"contrast": ["not", "yet"]}
        else:
            when = "before" if change == "before" else "after"
            summary["validation"][when]["per_head"][0]["head"] = 1
        (folder / "summary.json").write_text(json.dumps(summary))
    runs = read_runs(folders)
    rows = measures(runs)
    assert [one.change for one in _row(rows, "Attention", "after").values] == [None, None, None, "+0.000"]
    rises = [one.number for one in _row(rows, "Attention", "rise").values]
    assert rises == [0.48, 0.48, None, None]
    assert [" (a: 0.500)" in text for text in findings(runs)] == [False, False, False, True]
    assert ["went from" in text for text in findings(runs)] == [True, True, False, False]
    found = [text for text in cautions(runs) if "losses of a" not in text]
    assert found[0].startswith("Not the same guided heads or words: b, c against a;")
    assert [text.split(":")[0] for text in found[1:]] == ["c", "d"]


def test_a_last_measurement_before_the_last_step_is_pointed_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", "a")
    for step, expected in ((250, ["a: its last held-out measurement is from step 250 of 300."]), (300, [])):
        (folder / "validation.jsonl").write_text(json.dumps({"step": step, "lm_loss": 5.0}) + "\n")
        assert cautions(read_runs([folder])) == expected


def test_words_that_never_occur_are_pointed_out(tmp_path: Path) -> None:
    """A run that is guided to them is a plain one, whatever its weight says."""
    run = write_run(tmp_path / "a", "a", attention=(None, None))
    (text,) = cautions(read_runs([run]))
    assert text.startswith("a: no token of the held-out text is a target of contrast")
    diverged = write_run(tmp_path / "b", "b", attention=(None, None), loss=(7.0, None))
    assert not any("is a target of" in text for text in cautions(read_runs([diverged])))


def test_unfinished_unguided_and_unevaluated_runs_are_shown_as_such(tmp_path: Path) -> None:
    runs = read_runs([
        write_run(tmp_path / "a", "a", scores={"memo": 0.5}),
        write_run(tmp_path / "b", "b", attention=None),
        write_run(tmp_path / "c", "c", finished=False),
    ])  # fmt: skip
    rows = measures(runs)
    assert [value.text for value in _row(rows, "Tasks", "memo").values] == [
        "0.500", "not evaluated", "not evaluated",
    ]  # fmt: skip
    assert [value.text for value in _row(rows, "Attention", "after").values] == ["0.030", "–", "–"]
    assert _row(rows, "Run", "state").values[2].text == "not finished (step 300)"
    assert "nothing has been measured" in findings(runs)[2]
    for kind in ("html", "md", "csv"):
        assert "not evaluated" in _written(runs, kind)


def test_a_line_cut_off_by_a_crash_is_left_out(pair: list[Path]) -> None:
    path = pair[0] / "metrics.jsonl"
    before = len(read_runs(pair)[0].metrics)
    path.write_text(path.read_text() + '{"step": 310, "lm_lo')
    assert len(read_runs(pair)[0].metrics) == before


def test_equal_names_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    runs = read_runs([write_run(tmp_path / "a" / "run", "demo"), write_run(tmp_path / "b" / "run", "demo")])
    assert [run.name for run in runs] == ["demo (a/run)", "demo (b/run)"]


def test_csv_is_one_number_a_line(pair: list[Path]) -> None:
    rows = list(csv.DictReader(io.StringIO(_written(read_runs(pair), "csv"))))
    memo = next(row for row in rows if row["measure"].startswith("memo") and row["run"] == "guided")
    assert float(memo["value"]) == 0.58 and float(memo["difference_to_first"]) == pytest.approx(-0.03)
    assert float(memo["low"]) == pytest.approx(0.48) and memo["count"] == "100"
    tokens = next(row for row in rows if row["measure"] == "training tokens")
    assert float(tokens["value"]) == 614_400


class _Page(HTMLParser):
    """Tags, visible text, ids and everything that points outside of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text, self.ids, self.links = "", [], []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        fields = dict(attrs)
        if fields.get("id"):
            self.ids.append(fields["id"])
        self.links += [fields[name] for name in ("src", "href", "xlink:href") if fields.get(name)]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_is_self_contained_and_escapes_every_text(tmp_path: Path) -> None:
    hostile = write_run(
        tmp_path / "a", HOSTILE, experiment="<i>exp</i>", scores={f"task {HOSTILE}": 0.5},
        versions={"<b>torch</b>": "<b>2</b>"}, fingerprints={"data": "<img src=x onerror=alert(1)>"},
    )  # fmt: skip
    (hostile / "config.yaml").write_text("name: </pre><script>alert(2)</script>\n")
    page = _Page(_written(read_runs([hostile, write_run(tmp_path / "b", "b")]), "html"))
    assert not {"script", "i", "img", "link", "iframe"} & set(page.tags)
    for text in (HOSTILE, "<i>exp</i>", f"task {HOSTILE}", "<b>torch</b>", "</pre><script>alert(2)</script>"):
        assert text in page.text
    assert page.links and all(link.startswith("#") for link in page.links)
    assert len(page.ids) == len(set(page.ids)) and {link[1:] for link in page.links} <= set(page.ids)
    assert page.tags.count("svg") == 2


def test_markdown_shows_names_literally(tmp_path: Path) -> None:
    text = _written(read_runs([write_run(tmp_path / "a", HOSTILE)]), "md")
    assert "<script" not in text
    header = next(line for line in text.splitlines() if line.startswith("|"))
    assert len(re.findall(r"(?<!\\)\|", header)) == 3


def test_figures_show_every_run_and_are_deterministic(pair: list[Path]) -> None:
    runs = read_runs(pair)
    figure, heads = draw_curves(runs), draw_heads(runs)
    assert figure is not None and heads is not None
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["unguided", "guided"]
    held_out = figure.axes[1].lines[3]
    assert list(held_out.get_xdata()) == [0, 300] and list(held_out.get_ydata()) == [0.02, 0.953]
    assert render(figure, ".svg") == render(draw_curves(runs), ".svg")
    layers = heads.axes[0].lines[-1]
    assert list(layers.get_xdata()) == [0, 1, 2, 3] and set(layers.get_ydata()) == {0.953}


def test_held_out_points_come_from_every_validation(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", "a")
    records = [{"step": step, "lm_loss": 5 - step / 300, "guided_attention": 0.1} for step in (0, 150, 300)]
    (folder / "validation.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    figure = draw_curves(read_runs([folder]))
    assert figure is not None and list(figure.axes[0].lines[1].get_xdata()) == [0, 150, 300]


def test_held_out_points_are_of_one_text(tmp_path: Path) -> None:
    """A resume on other held-out blocks measures again, also after a step that has been measured."""
    folder = write_run(tmp_path / "a", "a")
    measured = [(0, "old", 5.0), (150, "old", 4.0), (150, "new", 2.0), (300, "new", 1.0)]
    records = [{"step": step, "measure": measure, "lm_loss": loss} for step, measure, loss in measured]
    (folder / "validation.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    figure = draw_curves(read_runs([folder]))
    assert figure is not None and list(figure.axes[0].lines[1].get_ydata()) == [2.0, 1.0]


def test_runs_without_measurements_have_no_figures(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "config.yaml").write_text("name: a\n")
    runs = read_runs([folder])
    assert draw_curves(runs) is None and draw_heads(runs) is None
    assert _Page(_written(runs, "html")).tags.count("svg") == 0


def test_command_prints_and_writes_every_format(pair: list[Path], tmp_path: Path) -> None:
    result = _command(*pair, "--output", tmp_path / "r.html", "--formats", "all")
    assert result.exit_code == 0, result.output
    assert "+0.0060 (+0.13%)" in result.output
    names = {"r.html", "r.md", "r.csv", "r.tex", "r-curves.png", "r-heads.png", "r-curves.svg", "r-heads.svg",
             "r-curves.pdf", "r-heads.pdf"}  # fmt: skip
    written = {path.name: path.stat().st_size for path in tmp_path.iterdir() if path.is_file()}
    assert written.keys() == names and min(written.values()) > 500


def test_command_names_every_mistake_at_once(pair: list[Path], tmp_path: Path) -> None:
    (pair[1] / "summary.json").write_text("{")
    result = _command(
        *pair, tmp_path / "none", tmp_path, "--output", "r.docx",
        "--output", pair[0] / "config.yaml" / "r.md",
        "--formats", "html,pnk",
    )  # fmt: skip
    assert isinstance(result.exception, UserError)
    problems = [fault.problem for fault in result.exception.faults]
    for part in (
        "is not valid JSON",
        "is not a folder",
        "no records",
        "kind of file",
        "cannot be written to",
        "unknown format",
    ):
        assert any(part in problem for problem in problems)


def test_one_run_given_twice_is_refused(pair: list[Path]) -> None:
    with pytest.raises(UserError, match="given twice"):
        read_runs([pair[0], pair[0] / ".." / pair[0].name])


def test_an_unfinished_run_is_described_by_its_records(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "c", "c", experiment="4-transition", finished=False)
    config = "name: mine\nguidance: {experiment: 4-transition, weight: 7.0}\ntrain: {steps: 900}\n"
    (folder / "config.yaml").write_text(config)
    (folder / "validation.jsonl").write_text(json.dumps({"step": 0, "lm_loss": 7.5, "sequences": 64}) + "\n")
    runs = read_runs([folder])
    rows = measures(runs)
    names = ("state", "experiment", "weight", "optimizer steps")
    assert [_row(rows, "Run", name).values[0].text for name in names] == [
        "not finished (step 300 of 900)", "4-transition", "7", "300",
    ]  # fmt: skip
    assert _row(rows, "Language", "before").values[0].number == 7.5
    assert findings(runs) == ["mine: held-out loss 7.5000 before training; no later one yet."]


def test_aliases_that_multiply_in_a_configuration_are_not_expanded(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", "a")
    layers = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    layers += [f"a{at}: &a{at} [{', '.join([f'*a{at - 1}'] * 10)}]" for at in range(1, 12)]
    (folder / "config.yaml").write_text("\n".join(layers))
    assert read_runs([folder])[0].settings == {}


def test_dropped_steps_and_diverged_runs_are_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", "a", validation={"after": {"lm_loss": None}})
    (folder / "skipped.jsonl").write_text("".join(json.dumps({"step": at}) + "\n" for at in (3, 4, 4)))
    runs = read_runs([folder])
    assert _row(measures(runs), "Run", "dropped").values[0].text == "2"
    assert _row(measures(runs), "Run", "state").values[0].text == "diverged"
    text = " ".join(cautions(runs))
    assert (
        "2 of 300 steps were dropped" in text and "a diverged: its last held-out loss is not finite" in text
    )


def test_settings_that_differ_have_a_table(pair: list[Path]) -> None:
    table = settings_table(read_runs(pair))
    assert [(name, [cell.text for cell in cells]) for name, cells in table.rows] == [
        ("guidance.experiment", ["finetuned", "4-transition"])
    ]


def test_the_course_of_the_training_has_a_panel_for_each_number(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", "a")
    rows = [{"step": at, "lr": 1e-3, "grad_norm": None if at == 2 else 1.0, "peak_memory": 2**30}
            for at in (1, 2, 3)]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    figure = draw_course(read_runs([folder]))
    assert figure is not None and len(figure.axes) == 3
    norm = list(figure.axes[1].lines[0].get_ydata())
    assert norm[::2] == [1.0, 1.0] and math.isnan(norm[1]), "a number that is not finite is a gap in the line"
    assert list(figure.axes[2].lines[0].get_ydata()) == [1.0, 1.0, 1.0]


def test_the_folder_of_an_output_is_made(pair: list[Path], tmp_path: Path) -> None:
    result = _command(*pair, "--output", tmp_path / "new" / "deep" / "r.md")
    assert result.exit_code == 0 and (tmp_path / "new" / "deep" / "r.md").is_file()


def test_passwords_in_addresses_are_masked(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "run")
    settings = "data:\n  source:\n    files: [https://me:S3CRET@host/a.jsonl]\n"
    (run / "config.yaml").write_text((run / "config.yaml").read_text() + settings)
    (found,) = read_runs([run])
    assert "S3CRET" not in found.config and "S3CRET" not in repr(found.settings)
    assert found.settings["data"]["source"]["files"] == ["https://***@host/a.jsonl"]
