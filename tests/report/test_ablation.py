"""The lines about a run without its guided heads, and a page of several ablations."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from gaguide.ablate.records import (
    AblationRecord,
    Effect,
    HeadRecord,
    MethodEffects,
    ModelRecord,
    write_ablation,
)
from gaguide.guidance.cues import BANDS
from gaguide.model.content import folder_record
from gaguide.report import make_report, read_runs, render_report
from gaguide.report.ablation_figures import draw_heads
from gaguide.report.ablation_report import ablation_report
from tests.report.synthetic import write_run


def effects(difference: float | None) -> MethodEffects:
    one = Effect(difference, -0.001, 0.002, 0.5, 0.7, 900) if difference is not None else Effect(None)
    return MethodEffects(one, one, dict.fromkeys(BANDS, one), over_controls=one, near_over_controls=one)


def save_weights(model: Path, content: bytes) -> Path:
    model.mkdir(exist_ok=True)
    (model / "model.safetensors").write_bytes(content)
    return model


def model_record(folder: Path, difference: float | None, moved: str, used: str) -> ModelRecord:
    content = folder_record(folder) if folder.is_dir() else {"files": []}
    heads = tuple(
        HeadRecord(
            layer, head, "guided" if head == 0 else "control", "contrast", 0.9, 0.02,
            Effect(0.88, 0.8, 0.9, 0.0001, 0.0002, 50), 0.4, 0.3, 0.5, {"mean": effects(difference)},
            moved, used,
        )
        for layer in range(2)
        for head in range(2)
    )  # fmt: skip
    return ModelRecord(
        str(folder), folder.parent.name, content, 2, 3, 4.5, dict.fromkeys(BANDS, 4.5),
        dict.fromkeys(BANDS, 30), {}, heads, {"mean": effects(difference)}, 3.0, ("a doubt about it",),
    )  # fmt: skip


def ablation(*models: ModelRecord) -> AblationRecord:
    return AblationRecord(models, {"methods": ["mean"], "blocks": 64, "patterns": []}, "mean", "plain", {})


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    plain = write_run(tmp_path / "plain", "plain")
    guided = write_run(tmp_path / "guided", "guided", attention=(0.02, 0.9))
    record = ablation(
        model_record(save_weights(plain / "model", b"plain"), 0.0051, "not compared", "used"),
        model_record(save_weights(guided / "model", b"guided"), None, "moved", "not measured"),
    )
    write_ablation(guided / "ablation", record)
    return [plain, guided]


def test_a_runs_lines_are_those_of_its_model_wherever_the_ablation_is(runs: list[Path]) -> None:
    plain, guided = read_runs(runs)
    assert plain.ablation is not None and guided.ablation is not None
    assert plain.ablation.loss.difference == 0.0051 and guided.ablation.loss.difference is None
    report = make_report([plain, guided])
    assert report.summary is not None
    rows = {name: cells for name, cells in report.summary.rows}
    loss = rows["loss without those heads, all at once (nats per token)"]
    assert [cell.text for cell in loss] == ["+0.0051", "–"] and "[-0.0010, 0.0020]" in loss[0].small
    assert rows["heads"][1].text == "2 attention moved, not measured"
    assert any("2 attention not compared, used" in sentence for sentence in report.findings)
    assert "guided, ablation: a doubt about it." in report.cautions
    assert "verdicts" in [table.name for table in report.tables]


def test_an_ablation_is_found_by_content_and_one_of_other_weights_is_not_shown(
    runs: list[Path], tmp_path: Path
) -> None:
    plain, guided = runs
    moved = plain.rename(tmp_path / "moved")
    found = {run.folder: run for run in read_runs([moved, guided])}
    assert found[moved].ablation is not None and found[moved].ablation.loss.difference == 0.0051
    assert not found[moved].notes and not found[guided].notes
    save_weights(moved / "model", b"retrained")
    save_weights(guided / "model", b"retrained too")
    for run in read_runs([moved, guided])[1:]:
        assert run.ablation is None
        assert any("other content (model.safetensors), and is not shown" in note for note in run.notes)
    assert any("guided: an ablation of it" in text for text in make_report(read_runs([guided])).cautions)
    hub = replace(
        model_record(guided / "model", None, "moved", "used"), model="gpt2", identity={"commit": "c"}
    )
    write_ablation(guided / "ablation", ablation(hub))
    (note,) = read_runs([guided])[0].notes
    assert "an ablation of it is of another model (gpt2), and is not shown" in note
    write_ablation(guided / "ablation", ablation(replace(hub, model=str(guided / "model"))))
    (guided / "model" / "model.safetensors").unlink()  # nothing to compare with: shown, and said
    (run,) = read_runs([guided])
    assert run.ablation is not None and any("its weights are missing" in note for note in run.notes)


def test_an_evaluation_of_other_weights_is_not_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "run", scores={"quiz": 0.75})
    path = run / "evaluation" / "results.json"
    content = folder_record(save_weights(run / "model", b"first"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"identity": content}))
    (found,) = read_runs([run])
    assert found.scores is not None and [one.value for one in found.scores] == [0.75]
    save_weights(run / "model", b"second")
    (found,) = read_runs([run])
    assert found.scores == () and any("the evaluation in evaluation is of a model" in n for n in found.notes)


def test_runs_without_an_ablation_have_no_such_lines(runs: list[Path], tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", "other")
    (run,) = read_runs([other])
    assert run.ablation is None
    report = make_report([run])
    assert report.summary is not None and not any("without" in name for name, _ in report.summary.rows)
    assert "verdicts" not in [table.name for table in report.tables]


def test_every_format_of_several_ablations(tmp_path: Path) -> None:
    first = ablation(model_record(tmp_path / "a" / "model", 0.5, "moved", "used"))
    second = ablation(model_record(tmp_path / "b" / "model", -0.25, "not moved", "harmful"))
    report = ablation_report([first, second])
    for kind in ("html", "md", "latex", "csv", "png"):
        assert all(render_report(report, kind, "x").values()), kind
    page = render_report(report, "html", "x")["x.html"].decode()
    assert "hatched: not removed" in page and "<pattern" in page
    for text in ("attention moved, used", "attention not moved, harmful", "+0.5000", "-0.2500", "a doubt"):
        assert text in page


def test_numbers_in_the_map_have_digits(tmp_path: Path) -> None:
    """A map of changes of 0.0004 nats is not one of +0.000."""
    small = ablation(model_record(tmp_path / "a" / "model", 0.0004, "moved", "used"))
    large = ablation(model_record(tmp_path / "b" / "model", 0.5, "moved", "used"))
    for record, text in ((small, "+0.00040"), (large, "+0.500")):
        figure = draw_heads([record])
        assert figure is not None and {one.get_text() for one in figure.axes[0].texts} == {text}
