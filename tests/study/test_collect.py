"""From finished cells to tables: the right cells are paired, and made-up effects are found."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from gaguide.cli import make_app
from gaguide.data.build.python_reference import train_embedded_tokenizer
from gaguide.errors import FaultCollector, UserError, mask_credentials
from gaguide.evaluate.tasks.locate import locate_tasks
from gaguide.log import code_fingerprint
from gaguide.publish.citation import PAPER_TITLE, PAPER_URL
from gaguide.publish.crate import Crate
from gaguide.study.analysis import WordFinder, gains
from gaguide.study.collect import collect
from gaguide.study.compare import Contrast, compare, find_contrasts
from gaguide.study.compare import means as collect_means
from gaguide.study.crate import add_task
from gaguide.study.evaluated import Evaluated, read_evaluated, results_of
from gaguide.study.file import load_study
from gaguide.study.grid import Cell, Grid, make_grid
from gaguide.study.record_files import read_study
from gaguide.study.recorded import recorded_grid
from gaguide.study.records import HELD_OUT
from gaguide.study.study_records import StudyRecords
from gaguide.study.verdicts import verdicts
from tests.study.cells import TASK, finish
from tests.support.crate import check_crate

PROMPTS = [f"The {at}th value is {'not ' if at % 2 else ''}bound, so it is" for at in range(60)]
# The guided experiment is correct in all examples with "not", the odd ones; elsewhere as the control.
SIZES = ["pico", "nano", "micro", "tiny"]


def margin(cell: Cell, at: int) -> float:
    """The control is correct in every third example, larger sizes in more; guidance helps after "not"."""
    known = at % 3 == 0 or at < 12 * SIZES.index(cell.size)
    helped = cell.experiment == "1-negation" and at % 2 == 1
    jitter = 0.01 * (cell.seed or 0)
    return (1.0 if known or helped else -1.0) + jitter


def loss(cell: Cell) -> float:
    return (
        5.0
        - 0.2 * SIZES.index(cell.size)
        + 0.03 * (cell.experiment == "1-negation")
        + 0.001 * (cell.seed or 0)
    )


def guided_contrast(grid: Grid) -> Contrast:
    """The guided experiment of the smallest size against its control."""
    (contrast,) = [
        each
        for each in find_contrasts(grid, read_evaluated(grid))
        if (each.size, each.experiment, each.baseline) == ("pico", "1-negation", "finetuned")
    ]
    return contrast


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Grid, StudyRecords]:
    folder = tmp_path_factory.mktemp("collect")
    file = folder / "study.yaml"
    tree = {
        "name": "made-up", "output": str(folder / "out"), "sizes": SIZES, "seeds": [0, 1],
        "experiments": ["original", "finetuned", "1-negation"], "data": {"shards": "embedded"},
        "pretrain": {"tokens": 10_000}, "tokens": 10_000, "train": {"global_batch": 4}, "tasks": ["demo"],
        "measure": "1-negation", "license": "https://creativecommons.org/licenses/by/4.0/",
        "authors": [{"name": "A A", "orcid": "https://orcid.org/0000-0002-1825-0097"}, "B B"],
    }  # fmt: skip
    file.write_text(yaml.safe_dump(tree))
    grid = make_grid(load_study(file, {}))
    finish(grid, train_embedded_tokenizer(600), PROMPTS, margin, loss)
    return grid, collect(grid)


def test_the_files_hold_what_was_collected(found: tuple[Grid, StudyRecords]) -> None:
    grid, records = found
    assert read_study(grid.folder) == records
    assert {cell.state for cell in records.cells} == {"done"}
    tiny = next(cell for cell in records.cells if cell.size == "tiny" and cell.role == "tuned")
    assert tiny.parameters == 600 * 128 + 256 * 128 + 4 * (12 * 128**2 + 13 * 128) + 2 * 128
    assert (tiny.wall_seconds, tiny.cpu_seconds, tiny.fingerprints["data"]) == (2.0, 1.5, "d")
    assert len({cell.fingerprints["tasks"] for cell in records.cells if cell.role != "base"}) == 1
    assert records.provenance["code"]["sha256"] == tiny.fingerprints["evaluation code"] == code_fingerprint()


def test_experiments_are_compared_on_the_same_examples_and_seed(found: tuple[Grid, StudyRecords]) -> None:
    _, records = found
    rows = {
        (row.level, row.size, row.experiment, row.baseline, row.seed, row.metric): row
        for row in records.comparisons
        if row.task == TASK
    }
    one = rows["seed", "pico", "1-negation", "finetuned", 0, "acc"]
    # The control is correct in 20 of 60 (every third); of the 30 odd examples 10 are multiples of three.
    assert (one.helped, one.hurt, one.baseline_value) == (20, 0, pytest.approx(20 / 60))
    assert one.p_exact == pytest.approx(2 / 2**20)
    assert one.improved is True
    over = rows["seeds", "pico", "1-negation", "finetuned", None, "acc"]
    assert over.difference == pytest.approx(20 / 60) and over.seeds == 2
    assert rows["seed", "pico", "finetuned", "original", 1, "acc"].difference == 0
    assert not any(row.experiment == row.baseline for row in records.comparisons)
    lm = next(r for r in records.comparisons if (r.task, r.baseline) == (HELD_OUT, "original"))
    assert (lm.baseline_value, lm.level, lm.p_holm) == (6.0, "seeds", lm.p)


def test_gain_is_found_where_the_words_are(found: tuple[Grid, StudyRecords]) -> None:
    _, records = found
    gains = {
        (row.size, row.words): row
        for row in records.gains
        if (row.baseline, row.metric, row.experiment) == ("finetuned", "acc", "1-negation")
    }
    assert gains["pico", "with"].gain == pytest.approx(20 / 30)
    assert gains["pico", "without"].gain == 0
    assert gains["pico", "with"].examples == gains["pico", "without"].examples == 30
    share = next(r for r in records.shares if (r.lexicon, r.mode) == ("contrast", "words"))
    assert (share.containing, share.examples) == (30, 60)
    pico = [row for row in records.changes if (row.size, row.baseline) == ("pico", "finetuned")]
    helped = [row for row in pico if (row.correct or 0) > (row.baseline_correct or 0)]
    assert len(helped) == 20 and all(row.contains == ["contrast"] for row in helped)


def test_a_prompt_is_searched_once(found: tuple[Grid, StudyRecords], monkeypatch: pytest.MonkeyPatch) -> None:
    finder, searched = WordFinder(train_embedded_tokenizer(600)), []
    plain = WordFinder._matches

    def matches(self: WordFinder, pattern: object, prompt: str) -> bool:
        searched.append(prompt)
        return plain(self, pattern, prompt)

    monkeypatch.setattr(WordFinder, "_matches", matches)
    first = finder.contains(PROMPTS, "contrast", "words", None)
    assert first.tolist() == [at % 2 == 1 for at in range(60)]
    assert finder.contains([*PROMPTS, "But no"], "contrast", "words", None).tolist() == [*first, True]
    assert len(searched) == 61


def test_the_gain_of_a_loss_per_token_counts_tokens(found: tuple[Grid, StudyRecords]) -> None:
    """Examples of three tokens lose a nat, those of one token gain one, and those of none do not count."""
    contrast = guided_contrast(found[0])
    tokens = np.asarray([(3, 3, 1, 1, 0, 0)[at % 6] for at in range(60)])
    changed = np.select([tokens == 3, tokens == 1], [-1.0, 1.0], 9.0)

    def with_loss(one: Evaluated, losses: np.ndarray) -> Evaluated:
        examples = replace(one.examples[TASK], outcomes={"loss": losses}, weights={"loss": tokens})
        changed = replace(one)
        vars(changed)["examples"] = {TASK: examples}  # a cached property
        return changed

    pairs = tuple(
        replace(pair, now=with_loss(pair.now, changed), before=with_loss(pair.before, np.zeros(60)))
        for pair in contrast.pairs
    )
    finder = WordFinder(train_embedded_tokenizer(600))
    rows = list(gains([replace(contrast, pairs=pairs)], finder))
    assert [(row.words, row.examples, row.gain) for row in rows] == [
        ("with", 20, -0.5),
        ("without", 20, -0.5),
    ]


def test_the_crate_describes_the_study(found: tuple[Grid, StudyRecords]) -> None:
    grid, records = found
    entities = check_crate(grid.folder)
    root = entities["./"]
    assert root["author"] == [{"@id": "https://orcid.org/0000-0002-1825-0097"}, {"@id": "#b-b"}]
    assert root["license"] == {"@id": "https://creativecommons.org/licenses/by/4.0/"}
    parts = {each["@id"] for each in root["hasPart"]}
    assert "study.json" in parts and any(name.endswith("/results.parquet") for name in parts)
    trained = [cell for cell in records.cells if cell.role == "tuned"]
    assert {f"{cell.folder}/summary.json" for cell in trained} <= parts
    made = [each for each in entities.values() if each["@type"] == "CreateAction"]
    assert {each["result"]["@id"] for each in made} >= {"./", f"{trained[0].folder}/summary.json"}
    assert any(each.get("sha256") == code_fingerprint() for each in entities.values())
    assert entities[PAPER_URL]["name"] == PAPER_TITLE
    assert {"@id": "#task-synthetic-negation"} in made[-1]["object"]


def test_the_crate_cites_what_describes_a_task(tmp_path: Path) -> None:
    crate, faults = Crate(tmp_path, "a", "b"), FaultCollector()
    for located in locate_tasks(["neqa", "condaqa"], None, faults):
        add_task(crate, located)
    entities = {each["@id"]: each for each in json.loads(crate.write().read_text())["@graph"]}
    assert entities["#task-neqa"]["citation"] == {"@id": "https://doi.org/10.48550/arXiv.2306.09479"}
    assert entities["https://doi.org/10.18653/v1/2022.emnlp-main.598"]["@type"] == "ScholarlyArticle"
    assert entities["#task-condaqa"]["license"] == "Apache-2.0"


def test_the_papers_numbers_are_given_for_published_weights_only(found: tuple[Grid, StudyRecords]) -> None:
    grid, _ = found
    metrics = {"acc": {"value": 0.7, "stderr": 0.1, "low": 0.5, "high": 0.9}}
    task = {"kind": "classification", "metrics": metrics, "count": 9, "chance": 0.5,
            "paper": {"gpt2": {"original": 0.7382, "finetuned": 0.7372}}}  # fmt: skip

    def paper(role: str, parameters: int, init: str = "pretrained") -> float | None:
        cell = next(cell for cell in grid.cells if cell.role == role)
        run = cell.run and cell.run.model_copy(
            update={"model": cell.run.model.model_copy(update={"init": init})}
        )
        one = Evaluated(replace(cell, run=run, base=None), grid.folder, parameters, {"memo-trap": task}, {})
        return results_of(one)[0].paper

    assert (paper("original", 124_439_808), paper("tuned", 124_439_808)) == (0.7382, 0.7372)
    assert paper("tuned", 124_439_808, "scratch") is None and paper("original", 354_823_168) is None
    base = next(cell for cell in grid.cells if cell.role == "original")  # trained here first
    assert results_of(Evaluated(base, grid.folder, 124_439_808, {"memo-trap": task}, {}))[0].paper is None


def test_attention_loss_and_scaling(found: tuple[Grid, StudyRecords]) -> None:
    _, records = found
    heads = [row for row in records.attention if row.size == "pico"]
    assert {(row.experiment, row.guided) for row in heads} >= {("finetuned", False), ("1-negation", True)}
    assert all((row.before, row.after) == (0.02, 0.9) for row in heads)
    cost = next(r for r in records.losses if (r.size, r.baseline) == ("nano", "finetuned"))
    assert cost.difference == pytest.approx(0.03) and cost.baseline_loss == pytest.approx(4.8005)
    near = [r for r in records.losses if (r.size, r.near) == ("nano", "negation")]
    assert {(r.experiment, r.baseline) for r in near} == {
        ("finetuned", "original"), ("1-negation", "original"), ("1-negation", "finetuned"),
    }  # fmt: skip
    over = near[-1]  # of four tokens near a cue, one has a nat less
    assert (over.difference, over.baseline_loss) == (pytest.approx(0.03), pytest.approx(4.8005 - 0.25))
    verdicts = {(row.experiment, row.task, row.metric): row.verdict for row in records.verdicts}
    assert verdicts["finetuned", TASK, "acc"] == "positive"
    assert verdicts["finetuned", HELD_OUT, "lm_loss"] == "positive"
    assert verdicts["original", HELD_OUT, "lm_loss"] == "flat"


@pytest.mark.parametrize("loss", [None, float("nan")])
def test_a_loss_near_cues_that_is_not_finite_is_no_number(
    found: tuple[Grid, StudyRecords], monkeypatch: pytest.MonkeyPatch, loss: float | None
) -> None:
    grid, _ = found
    bands = {"on": {"loss": loss, "tokens": 2}, "6-20": {"loss": 5.0, "tokens": 3}}
    near = {"lexicon": "negation", "content": "c", "bands": bands}
    diverged = {"validation": {"after": {"lm_loss": 5.0, "near_cue": near}}}
    monkeypatch.setattr("gaguide.study.evaluated.read_summary", lambda _: diverged)
    assert all(one.near_cue is None for one in read_evaluated(grid) if one.cell.run is not None)


def test_losses_near_other_cues_are_not_compared_and_whole_groups_are(
    found: tuple[Grid, StudyRecords],
) -> None:
    contrast = guided_contrast(found[0])
    one, other = contrast.pairs
    assert one.now.near_cue is not None
    moved = replace(one, now=replace(one.now, near_cue=replace(one.now.near_cue, content="d")))
    losses = replace(contrast, pairs=(moved, other)).near_cues()["negation"]
    assert losses == [(pytest.approx(5.031 - 0.25), pytest.approx(5.001 - 0.25))]

    def grouped(of: Evaluated, value: float) -> Evaluated:
        task = dict(of.tasks[TASK])
        metrics = {**task["metrics"], "group_acc": {"value": value}}
        doubts = {"acc": {"reason": "constant"}}
        return replace(of, tasks={TASK: {**task, "metrics": metrics, "uninformative": doubts}})

    pairs = tuple(
        replace(pair, now=grouped(pair.now, 0.3 + 0.3 * at), before=grouped(pair.before, 0.2))
        for at, pair in enumerate(contrast.pairs)
    )
    rows = {(row.level, row.metric): row for row in compare([replace(contrast, pairs=pairs)])}
    assert rows["seed", "acc"].detectable_holm == rows["seed", "acc"].detectable, "a family of one task"
    assert rows["seeds", "group_acc"].difference == pytest.approx(0.25)
    assert rows["seeds", "group_acc"].detectable is None, "two seeds this far apart show no share at all"
    assert rows["seeds", "group_acc"].p_holm == rows["seeds", "group_acc"].p, "a family of its own"
    assert rows["seeds", "group_acc"].constant == 4, "groups of constant answers are doubted as acc is"


def test_the_interval_of_a_share_stays_between_0_and_1(found: tuple[Grid, StudyRecords]) -> None:
    _, records = found
    (one, two) = [row for row in records.results if row.metric == "acc"][:2]
    rows = [replace(one, value=0.02), replace(two, size=one.size, experiment=one.experiment, value=0.3)]
    (mean,) = collect_means(rows)
    assert (mean.low, mean.high) == (0.0, 1.0)  # Student's is 0.16 ± 12.7 · 0.14
    (mean,) = collect_means([replace(row, metric="class_loss") for row in rows])
    assert mean.low is not None and mean.low < 0


def test_the_folder_of_a_study_stands_for_its_file(found: tuple[Grid, StudyRecords], tmp_path: Path) -> None:
    grid, _ = found
    assert recorded_grid(grid.folder) == grid
    moved = shutil.copytree(grid.folder, tmp_path / "moved")
    assert recorded_grid(moved).cells[0].id == grid.cells[0].id
    arguments = ["study", "status", str(moved)]
    assert "tiny" in CliRunner().invoke(make_app(), arguments, catch_exceptions=False).output
    with pytest.raises(UserError, match="other fields are not accepted"):
        CliRunner().invoke(make_app(), [*arguments, "--seeds", "0"], catch_exceptions=False)
    with pytest.raises(UserError, match="is a folder, not a study's file"):
        CliRunner().invoke(make_app(), ["study", "run", str(moved)], catch_exceptions=False)
    tree = json.loads((moved / "study.json").read_text("utf-8"))
    for change, problem in (
        ({"tokens": 20_000}, "make .* cells that its study.json does not have"),
        ({"task_data": mask_credentials("s3://key:secret@host/tasks")}, "keeps no passwords"),
        ({"seeds": "x"}, "valid integer"),
    ):
        (moved / "study.json").write_text(json.dumps(tree | {"study": tree["study"] | change}))
        with pytest.raises(UserError, match=problem):
            recorded_grid(moved)
    with pytest.raises(UserError, match="is a folder without study"):
        recorded_grid(tmp_path)


def test_constant_answers_reach_every_record(found: tuple[Grid, StudyRecords]) -> None:
    # The right answer is always " yes", so that no accuracy beats always giving it.
    grid, records = found
    means = [mean for mean in records.means if (mean.task, mean.metric) == (TASK, "acc")]
    assert {(mean.constant, mean.baseline, mean.doubt) for mean in means} == {(0, mean.seeds, "baseline")
                                                                              for mean in means}  # fmt: skip
    cells = read_evaluated(grid)
    for one in cells:
        if one.cell.size == "tiny":
            one.tasks[TASK]["uninformative"]["acc"]["reason"] = "constant"
    results = [row for one in cells for row in results_of(one)]
    by_size = {mean.size: mean for mean in collect_means(results) if mean.experiment == "finetuned"
               and (mean.task, mean.metric) == (TASK, "acc")}  # fmt: skip
    assert [by_size[size].constant for size in SIZES] == [0, 0, 0, 2]
    (verdict,) = (
        row for row in verdicts(cells)
        if (row.experiment, row.task, row.metric) == ("finetuned", TASK, "acc")
    )  # fmt: skip
    assert verdict.constant == 2
    compared = compare(find_contrasts(grid, cells))
    constant = {(row.level, row.size): row.constant for row in compared if row.metric == "acc"
                and (row.experiment, row.baseline) == ("1-negation", "finetuned")}  # fmt: skip
    assert (constant["seed", "tiny"], constant["seeds", "tiny"], constant["seeds", "pico"]) == (2, 4, 0)
