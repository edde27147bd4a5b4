"""The tutorial runs, shows what it says, and the committed page has its text and code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.patience import patience
from tests.support.ranks import REPOSITORY, rank_environment

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tutorial.md as a run of the tutorial makes it now."""
    folder = tmp_path_factory.mktemp("docs")
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "examples" / "render.py"), "--docs", str(folder)],
        env=rank_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=patience(180),
    )
    assert done.returncode == 0, done.stdout
    return folder / "tutorial.md"


def without_output(text: str) -> str:
    """A page without what its code printed, which differs between machines in the last digits."""
    return re.sub(r"```text\n.*?```\n", "", text, flags=re.DOTALL)


def test_guidance_moves_attention_and_costs_little(page: Path) -> None:
    rows = re.findall(
        r"^ *(\w+): lm loss ([\d.]+), attention on contrast words layer 0: ([\d.]+), layer 1: ([\d.]+)$",
        page.read_text("utf-8"),
        re.MULTILINE,
    )
    found = {name: tuple(map(float, numbers)) for name, *numbers in rows}
    loss, *masses = found["guided"]
    unguided_loss, *unguided_masses = found["unguided"]
    assert min(masses) > 0.8 and max(unguided_masses) < 0.2
    assert unguided_loss < 6.5, "the twins have learned something: ln 1024 is 6.9"
    assert abs(loss - unguided_loss) < 0.05 * unguided_loss
    assert (page.parent / "images" / "tutorial-heads.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_committed_page_is_of_this_tutorial(page: Path) -> None:
    committed = (REPOSITORY / "docs" / "tutorial.md").read_text("utf-8")
    assert without_output(committed) == without_output(page.read_text("utf-8")), "run examples/render.py"
