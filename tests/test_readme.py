"""The README is true: its files exist, its commands run, its example works."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from gaguide.ablate.records import read_ablation
from gaguide.engine.config import load_deepspeed_json
from gaguide.ports import free_port
from gaguide.train.command import read_arguments
from tests.support.patience import patience
from tests.support.ranks import REPOSITORY, rank_environment

pytestmark = pytest.mark.processes

README = (REPOSITORY / "README.md").read_text("utf-8")
BIN = Path(sys.executable).parent


def blocks(language: str) -> list[str]:
    """The README's code blocks of a language."""
    return [text for kind, text in re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL) if kind == language]


def commands() -> list[list[str]]:
    return [shlex.split(line) for block in blocks("console") for line in block.strip().splitlines()]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """`make demo` as the Makefile has it, in this environment and with a few steps only."""
    folder = tmp_path_factory.mktemp("demo")
    short = "--train.steps 6 --validation.every 0 --validation.blocks 8 --train.warmup_steps 2"
    done = subprocess.run(
        [
            "make",
            "demo",
            f"BIN={BIN}",
            f"DEMO={folder / 'demo'}",
            f"TRAIN={short}",
            f"PORT={free_port()}",
            "-o",
            ".venv/.installed",
        ],
        cwd=REPOSITORY,
        env=rank_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=patience(500),
    )
    assert done.returncode == 0, done.stdout
    return folder / "demo", done.stdout


def test_make_demo_trains_evaluates_and_pictures(demo: tuple[Path, str]) -> None:
    folder, printed = demo
    for run in ("guided", "unguided"):
        for name in ("config.yaml", "metrics.jsonl", "validation.jsonl", "summary.json", "deepspeed.json"):
            assert (folder / run / name).stat().st_size > 0, (run, name)
        for name in ("results.json", "examples.parquet"):
            assert (folder / run / "evaluation" / name).stat().st_size > 0, (run, name)
    page = (folder / "report.html").read_text("utf-8")
    assert "guided" in page and "synthetic-negation" in page
    assert (folder / "attention.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "Attention on the guided words" in printed
    ablation = read_ablation(folder / "guided" / "ablation")
    assert [model.name for model in ablation.models] == ["unguided", "guided"]
    assert "loss without those heads, all at once" in page
    assert "guided: 4 heads of the plan" in printed
    assert "Traceback" not in printed


def test_the_readmes_python_example_runs(demo: tuple[Path, str]) -> None:
    model = AutoModelForCausalLM.from_pretrained(demo[0] / "guided" / "model")
    tokenizer = AutoTokenizer.from_pretrained(demo[0] / "guided" / "model")
    names = {
        "model": model,
        "tokenizer": tokenizer,
        "ids": tokenizer("A name is not bound before it is used.", return_tensors="pt")["input_ids"],
    }
    (example,) = blocks("python")
    exec(compile(example, "README.md", "exec"), names)
    names["loss"].backward()
    assert model.config._attn_implementation == "sdpa"
    assert sorted(names["guidance"].per_head()) == [(layer, head) for layer in range(4) for head in range(4)]


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    assert blocks("console")[0].split("\n")[:2] == ["make demo", "make test"]
    targets = (REPOSITORY / "Makefile").read_text("utf-8")
    assert "\ndemo:" in targets and "\ntest:" in targets
    ci = (REPOSITORY / ".ci" / "run").read_text("utf-8")
    for target in ("check", "test", "docs", "test-cluster"):
        assert f"\n{target}:" in targets and f"\nmake {target}" in ci


@pytest.mark.parametrize(
    "command", [c for c in commands() if c[0] in ("deepspeed", "torchrun", "gaguide")], ids=" ".join
)
def test_options_of_printed_commands_exist(command: list[str]) -> None:
    """Commands that need a hub or a GPU are checked as far as their arguments."""
    entry = next((word for word in command if word.startswith(("launch/", "gaguide."))), None)
    if entry in ("launch/train.py", "gaguide.train"):
        run, deepspeed_json = read_arguments(command[command.index(entry) + 1 :])
        assert run.name == "gpt2-4-transition"
        assert load_deepspeed_json(deepspeed_json)["zero_optimization"]["stage"] == 2
        return
    program = [sys.executable, entry] if entry else [str(BIN / "gaguide")]
    words = [] if entry else [word for word in command[1:3] if re.fullmatch("[a-z]+", word)]
    shown = subprocess.run(
        [*program, *words, "--help"],
        cwd=REPOSITORY,
        env=rank_environment() | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for option in (word.split("=")[0] for word in command if word.startswith("--")):
        assert option in shown, f"{option} of {' '.join(command)}"


def test_the_file_tree_exists_and_names_every_package() -> None:
    (tree,) = [block for block in blocks("") if "gaguide/\n" in block]
    folder = Path()
    for line in tree.strip().splitlines():
        names = re.split(r"\s{2,}", line.strip())
        indented = line.startswith("  ")
        for name in names if not indented and "  " not in names[0] and len(names) > 2 else names[:1]:
            path = REPOSITORY / (folder / name if indented else Path(name))
            assert path.exists(), name
        folder = folder if indented else Path(names[0])
    packages = {
        path.name for path in (REPOSITORY / "gaguide").iterdir() if path.is_dir() and path.name[0] != "_"
    }
    assert packages <= set(re.findall(r"^  (\w+)/ ", tree, re.MULTILINE))


def test_linked_files_exist() -> None:
    names = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "ds_configs/README.md", "benchmarks/RESULTS.md")
    for page in [*(REPOSITORY / name for name in names), *(REPOSITORY / "docs").glob("*.md")]:
        for link in re.findall(r"\]\((?!http)([^)#]+)", page.read_text("utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_environment_is_this_checkout() -> None:
    """An outdated installed copy would make every test above meaningless."""
    import gaguide

    assert Path(gaguide.__file__).parent == REPOSITORY / "gaguide", os.environ.get("PYTHONPATH")
