"""Write a finished study's tables into a page of the documentation, with its figures and its records.

    python examples/pretrained/page.py runs/pretrained-cpu docs/pretrained-study.md

Replaces what stands between the page's marks, and writes docs/images/STUDY-….png and docs/records/STUDY: the
records that the tables are made from, without the tasks' texts, and the profiles of heads that its `chosen`
names. A test makes the tables from them again, as does this program with docs/records/STUDY.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from gaguide.figures import render
from gaguide.files import read_record, replacing_folder, write_bytes, write_text
from gaguide.heads.records import FILE, ProfileRecord, write_profile
from gaguide.report.document import Report, Table
from gaguide.report.markdown import to_markdown
from gaguide.report.outputs import make_report
from gaguide.report.profile_figures import draw_profile
from gaguide.report.profile_report import profile_report
from gaguide.report.study_head_figure import draw_heads
from gaguide.study.record_files import STUDY, read_study, write_tables
from gaguide.study.study_records import StudyRecords

BEGIN, END = "<!-- results: examples/pretrained/page.py writes what follows -->", "<!-- end of results -->"
_SAME_TEXT = (
    "The heads were chosen on held-out text on which their removal is measured after training as well: what "
    "removing the most used costs is overestimated there, with and without guidance."
)
_TABLES = ("loss", "head-counts", "comparisons")
"""Tables of the page, after those of scores: the report's names."""


Profiles = Mapping[str, ProfileRecord]
"""The profiles that a study's heads were chosen by, by the size's name; by "" where one is all sizes'."""


def results(study: StudyRecords, profiles: Profiles) -> str:
    """Text between the marks: findings, cautions and tables, as Markdown with headings of level 3."""
    report = make_report(study)
    scores = [table for table in report.tables if table.name.startswith("table-")]
    texts = {cell.fingerprints.get("data") for cell in study.cells} - {None}
    parts = []
    for size, profile in profiles.items():
        before = profile_report(profile)
        most = [table for table in before.tables if table.name == "most-used"]
        title = f"### Before training{size and f': {size}'}"
        parts += [title, _markdown(before, most), _paper_heads(profile)]
        if profile.settings.get("text_fingerprint") in texts:
            parts.append(_SAME_TEXT)
    tables = [*scores, *(table for table in report.tables if table.name in _TABLES)]
    return "\n\n".join([*parts, _markdown(report, tables)])


def _markdown(report: Report, tables: Sequence[Table]) -> str:
    _, _, text = to_markdown(replace(report, tables=tuple(tables))).partition("\n")
    return text.strip().replace("\n## ", "\n### ")


def _paper_heads(profile: ProfileRecord) -> str:
    """Notable behaviour of head 0 of a layer, before it is guided."""
    sentences = []
    for chosen in profile.chosen[:2]:
        count = sum(head == 0 for _, head in chosen.heads)
        expected = len(chosen.heads) / profile.heads_per_layer
        sentences.append(f"{count} of the {len(chosen.heads)} of {chosen.name} ({expected:.1f} by chance)")
    mass = {first: [] for first in (True, False)}
    for head in profile.heads:
        if head.mass is not None:
            mass[head.head == 0].append(head.mass)
    means = [f"{np.mean(mass[first]):.4f}" for first in (True, False)]
    return (
        f"Heads 0 of the layers, which the paper guides, are {' and '.join(sentences)}. Their attention on "
        f"the words is {means[0]} on average, that of the other heads {means[1]}."
    )


def find_profiles(study: StudyRecords, folder: Path) -> Profiles:
    """The profiles next to the records in `folder`, or else where the study's `chosen` says."""
    chosen = study.study.get("chosen")
    sizes = [size["name"] for size in study.study["sizes"]] if chosen and "{size}" in chosen else [""]
    found = {}
    for size in sizes:
        places = [folder / size, *([Path(chosen.replace("{size}", size)).parent] if chosen else [])]
        path = next((place / FILE for place in places if (place / FILE).exists()), None)
        if path is not None:
            found[size] = read_record(
                path, ProfileRecord, "a profile of heads", "run gaguide heads profile again"
            )
    return found


def keep_records(study: StudyRecords, profiles: Profiles, folder: Path) -> None:
    """Replace the records in `folder`: no texts of tasks, paths relative to the working folder."""
    with replacing_folder(folder) as new:
        write_tables(new, replace(study, changes=()))
        for size, profile in profiles.items():
            write_profile(new / size, profile)
        for path in (new / STUDY, *(new / size / FILE for size in profiles)):
            write_text(path, path.read_text("utf-8").replace(f"{Path.cwd()}/", ""))


def write_page(study: StudyRecords, profiles: Profiles, page: Path) -> None:
    """Replace the page's results. Raises `ValueError` where it has no marks."""
    before, begin, rest = page.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page}: lacks the lines {BEGIN} and {END}")
    write_text(page, f"{before}{BEGIN}\n\n{results(study, profiles)}\n\n{END}{after}")


def main(source: str, page: str) -> int:
    """The command line; returns the exit code."""
    folder, target = Path(source), Path(page)
    study = read_study(folder)
    profiles = find_profiles(study, folder)
    keep_records(study, profiles, target.parent / "records" / folder.name)
    figures = {"heads": draw_heads(study)}
    for size, profile in profiles.items():
        figures[f"profile-{size}" if size else "profile"] = draw_profile(profile)
    for name, figure in figures.items():
        if figure is not None:
            write_bytes(target.parent / "images" / f"{folder.name}-{name}.png", render(figure, ".png"))
    write_page(study, profiles, target)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
