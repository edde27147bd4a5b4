"""Trackers of their real libraries, with stores on this machine: what they show is what the records say."""

from __future__ import annotations

import json
import math
import os
import sqlite3
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from gaguide.errors import UserError
from gaguide.trackers import TrackedRun, Trackers, attach_files, tracker_faults
from gaguide.trackers import mirror as mirroring
from gaguide.trackers import rows as rows_
from gaguide.trackers.notes import read_note
from gaguide.trackers.rows import Row, Rows
from tests.support.patience import patience

TRACKERS = [
    pytest.param(
        name, marks=pytest.mark.skipif(find_spec(name) is None, reason=f"pip install 'gaguide[{name}]'")
    )
    for name in ("mlflow", "trackio")
]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No server is known, nothing is reported to makers of libraries, and a busy machine has its time."""
    for name in ("MLFLOW_TRACKING_URI", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_WRITE_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setattr(mirroring, "_PATIENCE", {"finished": patience(120)})


@pytest.fixture(scope="module")
def trackio_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """trackio's folder, which its library reads from the environment once a process."""
    with pytest.MonkeyPatch.context() as patch:  # later tests start runs that have folders of their own
        if "TRACKIO_DIR" not in os.environ:
            patch.setenv("TRACKIO_DIR", str(tmp_path_factory.mktemp("trackio")))
        yield Path(os.environ["TRACKIO_DIR"])


def write_records(folder: Path, steps: range, *, scale: float = 1.0) -> None:
    """Append logged steps, a validation after each third, and an evaluation after each fourth."""
    for step in steps:
        loss = None if step == 2 else scale * step / 3
        add(folder, "metrics", {"step": step, "loss": loss, "lm_loss": loss, "lr": 0.1, "mfu": None})
        if step % 3 == 0:
            add(folder, "validation", {"step": step, "lm_loss": scale * step, "measure": "a"})
            add(folder, "validation", {"step": step, "lm_loss": -1.0, "measure": "of other blocks"})
        if step % 4 == 0:
            metrics = {"acc": {"value": 0.5}, "none": {"value": None}}
            add(
                folder,
                "evaluations",
                {"step": step, "measure": "b", "tasks": {"a|task": {"metrics": metrics}}},
            )


def add(folder: Path, name: str, record: dict[str, Any]) -> None:
    with (folder / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


def run_in(folder: Path, settings: str = "one") -> TrackedRun:
    """A run whose records are in `folder`."""
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(f"settings: {settings}\n")
    return TrackedRun(
        name="hedged",
        folder=folder,
        settings=settings,
        config={"seed": 1, "train": {"steps": 9, "text": "x" * 7000}},
        tags={"gaguide.fingerprint.run": settings},
        files=(folder / "config.yaml",),
        measures={"validation": "a", "evaluation": "b"},
    )


def send(tracker: str, run: TrackedRun, **section: Any) -> dict[str, Any]:
    """One start of the run; returns what it keeps of its run in the tracker."""
    trackers = Trackers({tracker: {"enabled": True, **section}, "wandb": {"enabled": True}}, True)
    trackers.start(run)
    trackers.close("finished", run.files)
    return read_note(run.place, tracker)


def shown(tracker: str, run: TrackedRun) -> dict[str, list[tuple[int, float]]]:
    """Name → (step, value) as the tracker has them, oldest first."""
    found: dict[str, list[tuple[int, float]]] = {}
    known = read_note(run.place, tracker)["id"]
    if tracker == "mlflow":
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=f"sqlite:///{run.place / 'mlflow.db'}")
        for name in client.get_run(known).data.metrics:
            history = client.get_metric_history(known, name)
            found[name] = [
                (each.step, math.nan if math.isnan(each.value) else each.value) for each in history
            ]
        return found
    from trackio.sqlite_storage import SQLiteStorage

    for row in SQLiteStorage.get_logs("gaguide", known):
        for name in row.keys() - {"step", "timestamp"}:
            found.setdefault(name, []).append((row["step"], row[name]))
    return found


def expected(
    steps: range, changed_from: int = 10**9, scale: float = 1.0
) -> dict[str, list[tuple[int, float]]]:
    def at(step: int) -> float:
        return scale if step >= changed_from else 1.0

    losses = [(step, math.nan if step == 2 else at(step) * step / 3) for step in steps]
    return {
        "train/loss": losses,
        "train/lm_loss": losses,
        "train/lr": [(step, 0.1) for step in steps],
        "validation/lm_loss": [(step, at(step) * step) for step in steps if step % 3 == 0],
        "evaluation/a_task/acc": [(step, 0.5) for step in steps if step % 4 == 0],
    }


def same(left: dict[str, list[tuple[int, float]]], right: dict[str, list[tuple[int, float]]]) -> bool:
    return repr({k: sorted(left[k]) for k in sorted(left)}) == repr(
        {k: sorted(right[k]) for k in sorted(right)}
    )


@pytest.mark.slow  # a new database of MLflow takes ten seconds
@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_tracker_shows_each_number_once(
    tracker: str, tmp_path: Path, trackio_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A first start, a resume from an earlier step, and one with other settings."""
    run = run_in(tmp_path / "run")
    write_records(run.folder, range(1, 8))
    first = send(tracker, run)
    assert same(shown(tracker, run), expected(range(1, 8)))

    for name in rows_.FILES.values():  # as a resume from step 5 does
        lines = (run.folder / name).read_text().splitlines(keepends=True)
        (run.folder / name).write_text("".join(line for line in lines if json.loads(line)["step"] <= 5))
    write_records(run.folder, range(6, 10))
    assert send(tracker, run) == first
    assert same(shown(tracker, run), expected(range(1, 10)))

    for name in rows_.FILES.values():
        lines = (run.folder / name).read_text().splitlines(keepends=True)
        (run.folder / name).write_text("".join(line for line in lines if json.loads(line)["step"] <= 5))
    write_records(run.folder, range(6, 10), scale=2.0)
    changed = run_in(run.folder, "two")
    assert send(tracker, changed)["id"] != first["id"]
    assert same(shown(tracker, changed), expected(range(1, 10), changed_from=6, scale=2.0))
    assert "cannot be reached" not in capsys.readouterr().out
    check_description(tracker, changed, first["id"])


def check_description(tracker: str, run: TrackedRun, earlier: str) -> None:
    known = read_note(run.place, tracker)["id"]
    if tracker == "mlflow":
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=f"sqlite:///{run.place / 'mlflow.db'}")
        found = client.get_run(known)
        assert found.info.status == "FINISHED" and found.info.run_name == "hedged"
        assert found.data.params["seed"] == "1" and len(found.data.params["train.text"]) == 6000
        assert found.data.tags["gaguide.continues"] == earlier
        (file,) = client.list_artifacts(known, "run")
        assert Path(client.download_artifacts(known, file.path)).read_text() == "settings: two\n"
        assert attach_to(run, tracker) == ["mlflow"]
        assert [file.path for file in client.list_artifacts(known, "report")] == ["report/report.html"]
        assert client.get_run(known).info.status == "FINISHED"
        return
    from trackio.sqlite_storage import SQLiteStorage

    config = SQLiteStorage.get_run_config("gaguide", known)
    assert config["train"]["steps"] == 9 and config["gaguide.continues"] == earlier
    assert attach_to(run, tracker) == ["trackio"]
    with sqlite3.connect(SQLiteStorage.get_project_db_path("gaguide")) as connection:
        artifacts = {row[0] for row in connection.execute("SELECT name FROM artifacts")}
    assert {f"{known}-run", f"{known}-report"} <= artifacts


def attach_to(run: TrackedRun, tracker: str) -> list[str]:
    (run.folder / "deepspeed.json").write_text(json.dumps({tracker: {"enabled": True}}))
    (run.folder / "report.html").write_text("<p>a report</p>")
    return attach_files(run.folder, "report", [run.folder / "report.html"])


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mlflow") is None, reason="pip install 'gaguide[mlflow]'")
def test_a_tracker_that_is_gone_is_reported_once_and_served_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirroring, "_WAIT", 0.0)
    run = run_in(tmp_path / "run")
    write_records(run.folder, range(1, 5))
    address = f"sqlite:///{run.place}/later/x/mlflow.db"
    (run.place).mkdir()
    (run.place / "later").write_text("a file, where a folder is needed")
    trackers = Trackers({"mlflow": {"enabled": True, "tracking_uri": address}}, True)
    trackers.start(run)
    for _ in range(20):
        trackers.notify()
    trackers.close("finished")
    printed = capsys.readouterr().out
    assert printed.count("mlflow cannot be reached or refused") == 1
    assert "mlflow lacks the last numbers" in printed

    send("mlflow", run)
    assert same(shown("mlflow", run), expected(range(1, 5)))


def test_other_ranks_and_other_sections_send_nothing(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    for settings, is_main in (({"mlflow": {"enabled": True}}, False), ({"mlflow": {"enabled": False}}, True)):
        trackers = Trackers(settings, is_main)
        trackers.start(run)
        trackers.notify()
        trackers.close("finished")
    assert not run.place.exists()


def test_rows_of_a_growing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that is being written is left for the next time, whatever the size of a piece."""
    monkeypatch.setattr(rows_, "_CHUNK", 40)
    rows, path = Rows("train", tmp_path, None), tmp_path / "metrics.jsonl"

    def take() -> list[Row]:
        found: list[Row] = []
        for piece, end in rows.pending():
            found += piece
            rows.done(end)
        return found

    assert take() == []
    path.write_bytes(
        b'{"step": 1, "loss": 2.0}\nno JSON\n{"step": 2, "loss": 1.5, "lr": 0.1}\n{"step": 3, "lo'
    )
    assert [row.step for row in take()] == [1, 2]
    with path.open("ab") as file:
        file.write(b'ss": 1.0, "guided_attention": null}\n{"loss": 9}\n')
    assert take() == [Row("train", 3, {"train/loss": 1.0})]
    assert take() == []


@pytest.mark.parametrize(
    ("section", "field", "problem"),
    [
        ({"mlflow": {"tracking_uri": "htpp://server"}}, "mlflow.tracking_uri", "did you mean 'http'"),
        ({"mlflow": {"tracking_uri": "https://***@server"}}, "mlflow.tracking_uri", "are masked"),
        ({"trackio": {"server_url": "server:7860"}}, "trackio.server_url", "must begin with http"),
        ({"trackio": {"server_url": "http://server"}}, "trackio.server_url", "write token"),
        ({"trackio": {"space_id": "me/space"}}, "trackio.space_id", "no token of the hub"),
    ],
)
def test_faults_before_a_run(
    section: dict[str, Any], field: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    (name,) = section
    (fault,) = tracker_faults({name: {"enabled": True, **section[name]}})
    if find_spec(name) is None:
        field, problem = name, f"pip install 'gaguide[{name}]'"
    assert fault.field == f"{field} (DeepSpeed JSON)" and problem in str(fault)
    assert tracker_faults({name: {"enabled": False, **section[name]}}) == []


def test_a_report_is_attached_only_to_a_run_that_was_sent(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run that was sent"):
        attach_files(tmp_path, "report", [])
