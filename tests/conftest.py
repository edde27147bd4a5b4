"""Fixtures that several suites share."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings

# Nothing here may reach a hub; set before transformers reads it.
os.environ["HF_HUB_OFFLINE"] = "1"
# Triton reads this when it is imported: its interpreter runs GPU kernels where there is no GPU.
if not Path("/dev/nvidia0").exists():
    os.environ["TRITON_INTERPRET"] = "1"

from gaguide.data.build.demo_corpus import build_embedded_corpus
from tests.support.patience import measure_slowness
from tests.support.process_guard import no_processes

# The duration of an example depends on the load of the machine.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Measure the machine once, before any test process starts; pytest-xdist's workers inherit the result."""
    if not session.config.option.collectonly:
        measure_slowness()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse ids with an address: pytest-xdist's workers would collect different tests, and run none."""
    if named := [item.nodeid for item in items if " at 0x" in item.nodeid]:
        raise pytest.UsageError(f"give the parameters of {named[0]} ids without an address")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let only tests start processes that are marked for it, or left out of `make test-fast` anyway."""
    if any(mark.name in {"processes", "cluster", "gpu", "stress"} for mark in item.iter_markers()):
        return (yield)
    with no_processes(item.nodeid):
        return (yield)


@pytest.fixture(scope="session")
def embedded_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of the embedded corpus, built once for the session."""
    return build_embedded_corpus(tmp_path_factory.mktemp("shards") / "embedded")
