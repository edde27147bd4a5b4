"""The card of a really trained model, and its upload to a hub that speaks the real one's protocol."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

from gaguide.model.content import CRATE, model_files, read_content
from gaguide.publish import CARD, read_base_model, write_card
from gaguide.publish.card import render_card
from gaguide.publish.model_crate import write_model_crate
from gaguide.report.run_scores import TaskScore
from tests.support.crate import check_crate
from tests.support.patience import patience
from tests.support.ranks import DS_CONFIGS, TRAIN, rank_environment, run_ranks
from tests.support.upload_hub import UploadHub, upload_hub

pytestmark = pytest.mark.processes
BASE_CARD = """---
license: apache-2.0
language: en
base_model: someone/original
---
# A base
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A guided run of two steps."""
    folder = tmp_path_factory.mktemp("run") / "hedged"
    settings = {
        "output": folder, "name": "hedged", "model.name": "pico", "model.init": "scratch", "train.steps": 2,
        "train.global_batch": 4, "data.block_length": 64, "guidance.experiment": "1-negation",
        "guidance.weight": 3.0, "validation.blocks": 8, "checkpoint.every": 0,
    }  # fmt: skip
    arguments = ["--deepspeed", str(DS_CONFIGS / "zero2.json")]
    for name, value in settings.items():
        arguments += [f"--{name}", str(value)]
    done = run_ranks(TRAIN, arguments, ranks=1)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def copy_of(run: Path, target: Path) -> Path:
    shutil.copytree(run, target, ignore=shutil.ignore_patterns("checkpoints"))
    return target


def push(
    run: Path, hub: UploadHub | str, *options: str, token: str | None = "hf_x"
) -> subprocess.CompletedProcess[str]:
    address = hub if isinstance(hub, str) else hub.address
    environment = rank_environment() | {
        "HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(run.parent / "hf"),
    }  # fmt: skip
    environment |= {} if token is None else {"HF_TOKEN": token}
    program = str(Path(sys.executable).parent / "gaguide")
    command = [program, "push", str(run), "--repo", "me/hedged", *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=patience(120))


def test_the_card_of_an_export(run: Path) -> None:
    card = ModelCard.load(run / "model" / CARD)
    assert card.data.library_name == "transformers"
    assert {"gaguide", "attention-guidance"} <= set(card.data.tags)
    assert card.data.base_model is None and card.data.license is None  # random weights
    summary = json.loads((run / "summary.json").read_text())
    assert f"{summary['validation']['after']['lm_loss']:.4f}" in card.content
    assert summary["fingerprints"]["data"] in card.content
    assert "| 0 | 0, 1 | contrast | 1 |" in card.content
    assert "\nVocabulary pieces of contrast: `" in card.content and "\n\nExperiment `1-" in card.content
    assert "Ġnot" in summary["patterns"]["contrast"] and "`Ġnot`" in card.content
    assert "Whether the model uses their output" in card.content
    assert "gaguide push" in card.content
    assert str(run) not in card.content
    AutoModelForCausalLM.from_pretrained(run / "model")


def test_what_the_base_models_card_says_is_carried_over(run: Path, tmp_path: Path) -> None:
    (tmp_path / CARD).write_text(BASE_CARD)
    base = read_base_model(str(tmp_path), True, "content")
    assert (base.license, base.language, base.hub_id) == ("apache-2.0", ("en",), "someone/original")
    summary = json.loads((run / "summary.json").read_text())
    summary["base_model"] = base.as_record()
    summary["sources"] = ["Skylion007/openwebtext", "https://user:secret@host/text.jsonl"]
    text = render_card(summary, (run / "config.yaml").read_text())
    data = ModelCard(text).data
    assert (data.license, data.language, data.base_model) == ("apache-2.0", ["en"], "someone/original")
    assert data.datasets == ["Skylion007/openwebtext"]
    assert "secret" not in text
    unknown = read_base_model(str(tmp_path / "none"), True, "content")
    summary["base_model"] = unknown.as_record()
    assert "licence of the base model is not known" in render_card(summary, (run / "config.yaml").read_text())
    assert "rounded to" not in text
    summary["validation"]["before"]["per_head"] = []  # of other heads: a resume has changed the plan
    found = render_card(summary, (run / "config.yaml").read_text())
    attention = summary["validation"]["after"]["guided_attention"]
    assert f"heads on the words | not measured | {attention:.4f} |" in found
    text = render_card(summary, (run / "config.yaml").read_text(), dtype="bfloat16")
    assert "rounded to bfloat16; losses and attention above are of the run's own weights" in text


@pytest.mark.parametrize("card", ["---\nlicense: [\n---\n", "no metadata", "---\n- a\n---\n"])
def test_a_card_of_the_base_that_cannot_be_read_is_no_obstacle(tmp_path: Path, card: str) -> None:
    (tmp_path / CARD).write_text(card)
    assert read_base_model(str(tmp_path), True, "content").license is None


def test_scores_and_a_card_of_ones_own(run: Path, tmp_path: Path) -> None:
    mine = copy_of(run, tmp_path / "mine")
    score = TaskScore("a|task", "acc", 0.5, 0.4, 0.6, 100, "high", doubt="baseline")
    assert write_card(mine, mine / "model", [score])
    text = (mine / "model" / CARD).read_text()
    assert r"| a\|task | acc | 0.5000 (§ Not better than" in text and "| 0.4000 to 0.6000 | 100 |" in text
    assert ModelCard(text).data.eval_results[0].metric_value == 0.5
    (mine / "model" / CARD).write_text("# My own")
    assert not write_card(mine, mine / "model", [score])
    assert (mine / "model" / CARD).read_text() == "# My own"


def test_a_constant_answer_is_said_in_the_card(run: Path, tmp_path: Path) -> None:
    mine = copy_of(run, tmp_path / "mine")
    found = TaskScore("scone", "acc", 0.5, 0.4, 0.6, 100, "high", doubt="constant")
    write_card(mine, mine / "model", [found])
    (row,) = [line for line in (mine / "model" / CARD).read_text().splitlines() if line.startswith("| scone")]
    assert "0.5000 (‡ One answer or position" in row


def test_the_crate_of_a_model(run: Path, tmp_path: Path) -> None:
    mine = copy_of(run, tmp_path / "mine")
    (mine / "model" / "LICENSE").write_text("of the base model")
    before = identity(mine / "model")
    write_model_crate(mine, mine / "model")
    assert identity(mine / "model") == before  # a description is no part of a model
    entities = check_crate(mine / "model")
    assert {"LICENSE", "config.json", "model.safetensors"} <= entities.keys()
    prints = json.loads((run / "summary.json").read_text())["fingerprints"]
    (made,) = [each for each in entities.values() if each["@type"] == "CreateAction"]
    data, code = f"#data-{prints['data'][:16]}", f"#gaguide-{prints['code'][:16]}"
    assert {"@id": data} in made["object"] and {"@id": code} in made["instrument"]
    assert entities[data]["identifier"][0] == f"fingerprint:{prints['data']}"


def identity(model: Path) -> list[tuple[str, str]]:
    return [(path.name, read_content(path).sha256) for path in model_files(model)]


def test_push_sends_the_folder_once(run: Path, tmp_path: Path) -> None:
    mine = copy_of(run, tmp_path / "mine")
    (mine / "model" / ".private").write_text("not sent")
    with upload_hub() as hub:
        hub.refuse = 500  # the connection is lost after the weights were sent
        first = push(mine, hub, "--private")
        assert first.returncode == 2 and "not sent twice" in first.stderr, first.stderr
        assert "Traceback" not in first.stderr
        sent = list(hub.sent)
        assert len(sent) == 1
        hub.refuse = None
        second = push(mine, hub, "--private")
        assert second.returncode == 0, second.stderr
        assert hub.sent == sent  # the weights were there already
        assert hub.repositories == {"me/hedged": True}
        want = {path.name for path in (mine / "model").iterdir()} - {".private"}
        assert CRATE in want
        assert hub.files["me/hedged"].keys() == want
        for name in want:
            assert hub.files["me/hedged"][name] == (mine / "model" / name).read_bytes(), name


def test_refusals(run: Path, tmp_path: Path) -> None:
    mine = copy_of(run, tmp_path / "mine")
    with upload_hub() as hub:
        hub.refuse = 403
        refused = push(mine, hub)
        assert (
            refused.returncode == 2
            and "no write access" in refused.stderr
            and "write access" in refused.stderr
        )
        hub.refuse = None
        dry = push(mine, hub, "--dry-run", token=None)
        assert dry.returncode == 0 and "model.safetensors" in dry.stdout and not hub.files
    down = push(mine, "http://127.0.0.1:9")
    assert down.returncode == 2 and "cannot be reached" in down.stderr, down.stderr
    (mine / "summary.json").unlink()
    both = push(mine, hub.address, token=None)
    assert both.returncode == 2 and "finished run" in both.stderr and "hf auth login" in both.stderr
    assert (mine / "model" / "model.safetensors").exists()
