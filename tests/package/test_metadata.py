"""The package's metadata: declared dependencies, one version, the same authors everywhere."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import gaguide
from gaguide.publish.citation import PAPER_AUTHORS, PAPER_INSTITUTION, PAPER_TITLE, PAPER_URL, PAPER_YEAR
from tests.support.ranks import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
CITATION = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text("utf-8"))
FOR_USERS = ("mpi", "viz", "monitor", "mlflow", "trackio", "remote", "lora", "qlora")
"""Extras whose packages the code may import; the others are for development."""
PART_OF_ANOTHER = {"triton": "torch"}
"""Import → the dependency that brings it: builds of torch for CUDA contain triton."""


def imported() -> dict[str, str]:
    """Top-level name of every import of another project → a file with it."""
    found: dict[str, str] = {}
    for path in (REPOSITORY / "gaguide").rglob("*.py"):
        for name in _imports(ast.parse(path.read_text("utf-8"))):
            found.setdefault(name.partition(".")[0], str(path.relative_to(REPOSITORY)))
    return {name: path for name, path in found.items() if name not in {*sys.stdlib_module_names, "gaguide"}}


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_every_import_is_declared() -> None:
    lines = [*PROJECT["dependencies"]]
    for extra in FOR_USERS:
        lines += PROJECT["optional-dependencies"][extra]
    declared = {canonicalize_name(Requirement(line).name) for line in lines}
    distributions = packages_distributions()
    missing = {}
    for name, path in imported().items():
        candidates = {*distributions.get(name, ()), PART_OF_ANOTHER.get(name, name)}
        if not declared & {canonicalize_name(candidate) for candidate in candidates}:
            missing[name] = path
    assert not missing


def test_the_version_has_one_source() -> None:
    assert PROJECT["dynamic"] == ["version"] and "version" not in PROJECT
    version = Version(gaguide.__version__)
    assert str(version) == gaguide.__version__ == str(CITATION["version"])
    changelog = (REPOSITORY / "CHANGELOG.md").read_text("utf-8")
    titles = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", changelog, re.MULTILINE)
    assert titles, "no section in CHANGELOG.md"
    if version.is_devrelease:
        assert titles[0] == ("Unreleased", "")
    else:
        assert titles[0][0] == str(version) and titles[0][1], "a release has a dated section"
    released = [Version(name) for name, _ in titles if name != "Unreleased"]
    assert released == sorted(released, reverse=True)
    assert all(number <= version for number in released)


def test_authors_are_those_of_the_citation() -> None:
    assert [author["name"] for author in PROJECT["authors"]] == [each["name"] for each in CITATION["authors"]]


def test_the_cited_study_has_one_owner() -> None:
    cited = CITATION["preferred-citation"]
    authors = [(each["given-names"], each["family-names"]) for each in cited["authors"]]
    assert (cited["title"], cited["url"], cited["year"]) == (PAPER_TITLE, PAPER_URL, PAPER_YEAR)
    assert (tuple(authors), cited["institution"]["name"]) == (PAPER_AUTHORS, PAPER_INSTITUTION)


@pytest.mark.parametrize("extra", PROJECT["optional-dependencies"])
def test_extras_parse(extra: str) -> None:
    for line in PROJECT["optional-dependencies"][extra]:
        Requirement(line)


_FAULTY = {
    "scipy": ("1.13.1", "1.14.1"),  # no bootstrap(rng=), noticed only when a study is collected
    "statsmodels": ("0.14.5",),  # fails with pandas 3
    "typer": ("0.15.4",),  # fails with click 8.2
    "transformers": (
        "5.0.0",
        "5.12.0",
    ),  # tied embeddings counted twice; the Trainer's gradients divided twice
    "tokenizers": ("0.22.0",),  # requires huggingface_hub below 1, transformers 5 above
    "tiktoken": ("0.9.0",),  # 16 s for 100,000 times one letter
}


def test_versions_known_to_fail_are_not_allowed() -> None:
    bounds = {(given := Requirement(line)).name: given.specifier for line in PROJECT["dependencies"]}
    allowed = [(name, each) for name, old in _FAULTY.items() for each in old if each in bounds[name]]
    assert not allowed
