"""docs/api.md is the public Python API: its names exist, and packages export what it lists."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from itertools import chain
from typing import Any

import pytest
import yaml

from tests.support.ranks import REPOSITORY

_ENTRY = re.compile(r"^::: (\S+)\n((?:    .*\n)*)", re.MULTILINE)
_IMPORT = re.compile(r"^\s*from (gaguide[\w.]*) import (.+)$", re.MULTILINE)


def _entries() -> dict[str, list[str]]:
    """Module or object of the page → the members that it lists."""
    page = (REPOSITORY / "docs" / "api.md").read_text("utf-8")
    return {
        name: (yaml.safe_load(below) or {}).get("options", {}).get("members", [])
        for name, below in _ENTRY.findall(page)
    }


ENTRIES = _entries()
MODULES = {name: members for name, members in ENTRIES.items() if members}
OBJECTS = [name for name, members in ENTRIES.items() if not members]


def test_the_page_lists_what_the_guides_are_about() -> None:
    names = {name for members in MODULES.values() for name in members}
    wanted = {"guide", "collecting", "GuidancePlan", "measure", "intervene", "evaluate_model", "guided"}
    assert wanted <= names and OBJECTS == ["gaguide.distributed.World"]


@pytest.mark.parametrize("module", MODULES)
def test_documented_names_can_be_imported_and_packages_export_no_others(module: str) -> None:
    found: Any = importlib.import_module(module)
    members = MODULES[module]
    assert len(set(members)) == len(members)
    for name in members:
        value = getattr(found, name)
        if callable(value) and inspect.getmodule(value) is not None:
            assert inspect.getdoc(value), f"{module}.{name} has no docstring"
    if hasattr(found, "__path__"):
        assert sorted(found.__all__) == sorted(members)


@pytest.mark.parametrize("name", OBJECTS)
def test_documented_objects_exist(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    assert inspect.getdoc(getattr(importlib.import_module(module), attribute))


def test_every_import_in_the_documentation_is_of_the_public_api() -> None:
    public = {f"{module}.{name}" for module, members in MODULES.items() for name in members}
    pages = chain((REPOSITORY / "docs").glob("*.md"), [REPOSITORY / "README.md"])
    shown = [
        (page.name, f"{module}.{name.strip()}")
        for page in pages
        for module, names in _IMPORT.findall(page.read_text("utf-8"))
        for name in names.split(",")
    ]
    assert len(shown) > 20
    assert [one for one in shown if one[1] not in {*public, *OBJECTS}] == []


@pytest.mark.processes
def test_packages_with_lazy_exports_start_without_torch() -> None:
    code = (
        "import sys, gaguide.evaluate, gaguide.guidance, gaguide.interventions; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert (done.stdout.strip(), done.stderr) == ("False", "")
