"""Bounds of versions: one place and a reason for each, and the table of what ran says the same."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.support.ranks import REPOSITORY

TEXT = (REPOSITORY / "pyproject.toml").read_text("utf-8")
PROJECT = tomllib.loads(TEXT)["project"]
EXTRAS = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
LINES = [*PROJECT["dependencies"], *EXTRAS]
BOUNDED = {line: given for line in LINES if (given := Requirement(line)).specifier}
"""Requirement as pyproject.toml has it → parsed, of those with a bound."""
COLUMNS = ("python", "torch", "transformers", "deepspeed")
TABLE = (REPOSITORY / "docs/versions.md").read_text("utf-8")
RAN = re.findall(r"^\| `make (\S+)`" + r" \| (\S+)" * len(COLUMNS), TABLE, re.MULTILINE)
ROWS = {target: dict(zip(COLUMNS, map(Version, versions))) for target, *versions in RAN}
"""Target of the Makefile → the versions with which it has run, by the table in docs/versions.md."""


def bounds(name: str) -> SpecifierSet:
    return next(each.specifier for each in BOUNDED.values() if each.name == name)


def lowest(specifier: SpecifierSet) -> Version:
    (found,) = (Version(each.version) for each in specifier if each.operator == ">=")
    return found


@pytest.mark.parametrize("line", BOUNDED)
def test_a_bound_carries_its_reason(line: str) -> None:
    found = [each for each in TEXT.splitlines() if f'"{line}"' in each]
    assert any(re.search(r'",\s+# \w.{9,}$', each) for each in found), found


def test_a_bound_is_the_same_wherever_it_stands() -> None:
    """In pyproject.toml's lists, and in commands that the docs and scripts give."""
    known: dict[str, SpecifierSet] = {}
    for each in BOUNDED.values():
        assert known.setdefault(canonicalize_name(each.name), each.specifier) == each.specifier, each
    stated = re.compile(r"(?<![\w.-])([A-Za-z][\w.-]*)(?:\[[\w,]+\])?((?:,?[<>=!~]=\d[\w.]*|,?<\d[\w.]*)+)")
    files = [*REPOSITORY.glob("*.md"), REPOSITORY / "docker/Dockerfile"]
    for folder in ("docs", "examples", "tests/cluster", "benchmarks"):
        files += (REPOSITORY / folder).rglob("*.[mp][dy]")
    different = [
        (str(path.relative_to(REPOSITORY)), name + specifier)
        for path in files
        if path.name != "CHANGELOG.md"
        for name, specifier in stated.findall(path.read_text("utf-8"))
        if SpecifierSet(specifier) != known.get(canonicalize_name(name), SpecifierSet(specifier))
    ]
    assert not different


@pytest.mark.parametrize("name", ["torch", "transformers", "deepspeed"])
def test_both_ends_of_a_range_have_run(name: str) -> None:
    """Nothing older than what test-lowest ran is allowed, and no minor release after what test-newest ran."""
    given = bounds(name)
    assert ROWS["test-lowest"][name] == lowest(given)
    newest = ROWS["test-newest"][name]
    (end,) = (Version(each.version) for each in given if each.operator == "<")
    assert newest == max(row[name] for row in ROWS.values()) and newest < end
    following = {Version(f"{newest.major}.{newest.minor + 1}"), Version(f"{newest.major + 1}")}
    assert end in following, f"{name} <{end} allows releases that have not run"


def test_pythons_that_are_promised_have_run() -> None:
    promised = {line.rpartition(" ")[2] for line in PROJECT["classifiers"] if "Python :: 3." in line}
    assert promised == {f"{row['python'].major}.{row['python'].minor}" for row in ROWS.values()}
    oldest = str(lowest(SpecifierSet(PROJECT["requires-python"])))
    assert oldest == min(promised, key=Version)
    for file in ("README.md", "CONTRIBUTING.md", "docker/Dockerfile"):
        text = Path(REPOSITORY / file).read_text("utf-8")
        assert set(re.findall(r"Python (3\.\d+) or newer", text)) == {oldest}, file


def test_the_table_names_targets_and_the_constraint_of_make() -> None:
    targets = set(re.findall(r"^([\w -]+):(?! UV)", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    targets = {name for line in targets for name in line.split()}
    commands = re.findall(r"^make (\S+)", (REPOSITORY / ".ci/run").read_text(), re.MULTILINE)
    assert {*ROWS, *commands} <= targets
    pinned = dict(
        re.findall(r"^(\w+)==([\w.]+)", (REPOSITORY / ".ci/constraints.txt").read_text(), re.MULTILINE)
    )
    assert pinned and all(version in bounds(name) for name, version in pinned.items())
    assert all(ROWS["test"][name] == Version(version) for name, version in pinned.items())
