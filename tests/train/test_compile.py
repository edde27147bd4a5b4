"""`train.compile` on real ranks: losses of the eager run, one graph, exact resume, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig

from gaguide.config import EMBEDDED, load_config
from gaguide.distributed import World
from gaguide.engine.compiled import CompiledForward, compile_faults
from gaguide.errors import UserError
from gaguide.log import read_metrics
from gaguide.train.preflight import prepare
from tests.support.adapters import LORA, make_base
from tests.support.models import random_ids, tiny_model
from tests.support.ranks import DS_CONFIGS, run_ranks

SCRIPT = Path(__file__).parent / "variants_script.py"
EAGER = {"guidance.experiment": "finetuned", "validation.every": "2", "validation.blocks": "5"}
GUIDED = {"guidance.experiment": "1-negation"}
COMPILED = {"train.compile": "true", "checkpoint.every": "2"}
RUNS = ("zero2", "guided0", "guided1", "guided2", "guided-adapters2")
LLAMA = LlamaConfig(
    vocab_size=2048, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=64, max_position_embeddings=64, bos_token_id=0, eos_token_id=0,
)  # fmt: skip


def shipped(name: str) -> dict[str, Any]:
    return json.loads((DS_CONFIGS / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def runs(embedded_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compiled")
    spec: dict[str, Any] = {}
    adapters = LORA | {"model.name": str(make_base(embedded_shards, folder / "base", LLAMA))}
    for name in RUNS:
        ds = shipped(f"zero{name[-1]}")
        run = EAGER | (GUIDED if name.startswith("guided") else {}) | (adapters if "adapters" in name else {})
        spec[f"{name}-eager"] = {"ds": ds, "run": run}
        spec[name] = {"ds": ds, "run": run | COMPILED}
    harder = {"model.dropout": "0.1", "train.gradient_checkpointing": "true", "guidance.mode": "words"}
    spec["dropout"] = {"ds": shipped("zero2"), "run": EAGER | GUIDED | COMPILED | harder}
    spec["resumed"] = spec["dropout"] | {"copy": "dropout", "forget": "step-00000004"}
    spec["resumed-adapters"] = spec["guided-adapters2"] | {
        "copy": "guided-adapters2", "forget": "step-00000004",
    }  # fmt: skip
    (folder / "spec.json").write_text(json.dumps(spec))
    arguments = [str(embedded_shards), str(folder), str(folder / "spec.json")]
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "cache")}
    done = run_ranks(SCRIPT, arguments, environment=cache, timeout=900)
    assert done.returncode == 0, done.stdout
    (folder / "output.txt").write_text(done.stdout)
    return folder


def curve(runs: Path, name: str, field: str, file: str = "metrics") -> list[Any]:
    records = read_metrics(runs / name / f"{file}.jsonl")
    return [math.nan if record[field] is None else record[field] for record in records]


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_compiled_run_has_the_losses_of_the_eager_one(runs: Path, name: str) -> None:
    guided = ("guidance_loss", "guided_attention") if name.startswith("guided") else ()
    # The first steps of Adam divide an adapter's rounding by gradients near zero.
    rel = 1e-4 if "adapters" in name else 1e-5
    for field in ("loss", "grad_norm", *guided):
        assert curve(runs, name, field) == pytest.approx(
            curve(runs, f"{name}-eager", field), rel=rel, nan_ok=True
        )
    held_out = [curve(runs, each, "lm_loss", "validation") for each in (name, f"{name}-eager")]
    assert len(held_out[0]) == 3 and held_out[0] == pytest.approx(held_out[1], rel=1e-5)


@pytest.mark.processes
@pytest.mark.slow
def test_one_graph_is_compiled_although_validation_has_other_shapes(runs: Path) -> None:
    for name in (*RUNS, "dropout"):
        assert curve(runs, name, "compile_graphs") == [1] * 4
        assert curve(runs, name, "compile_recompilations") == [0] * 4
        assert all(seconds > 0 for seconds in curve(runs, name, "compile_seconds"))
    assert "compile_graphs" not in read_metrics(runs / "zero2-eager" / "metrics.jsonl")[0]
    assert "step 1: compiled 1 graph in" in (runs / "output.txt").read_text()


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.parametrize("names", [("dropout", "resumed"), ("guided-adapters2", "resumed-adapters")])
def test_a_compiled_run_resumes_to_the_same_bits(runs: Path, names: tuple[str, str]) -> None:
    """Checkpointed and with dropout, whose draws the compiled graph makes itself; and adapters alone."""
    assert (runs / "output.txt").read_text().count("resuming after step 2 of 4") == 2
    assert curve(runs, "dropout", "loss") != curve(runs, "guided2", "loss")
    for field in ("loss", "grad_norm"):
        whole, resumed = (curve(runs, name, field) for name in names)
        assert resumed == whole and len(whole) == 4
    files = (runs / name / "model" / "model.safetensors" for name in names)
    whole, resumed = map(load_file, files)
    assert all(torch.equal(whole[part], resumed[part]) for part in whole)


@pytest.mark.processes
def test_compiled_models_in_one_process_do_not_try_each_others_graphs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A graph of another model would count as one that was replaced."""
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda forward, **_: real(forward, backend="aot_eager"))
    ids, made = random_ids(2, 8), []
    models = [tiny_model(kind).train() for kind in ("gpt2", "llama-grouped-query")]
    for model in models:
        model.loss_type = "ForCausalLM"  # as training sets it
        made.append(CompiledForward(model, True, None))
    for model in models * 2:
        model(input_ids=ids, labels=ids, use_cache=False)
    assert (made[1].cost.graphs, made[1].cost.recompilations) == (2, 0)
    for one in made:
        one.close()


def test_the_loss_alone_leaves_a_compiled_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backward would add a gradient of zeros to logits that the graph returns."""
    monkeypatch.setattr(torch, "compile", lambda forward, **_: forward)
    model, ids = tiny_model("gpt2").train(), random_ids(2, 8)
    want = model(input_ids=ids, labels=ids)
    compiled = CompiledForward(model, True, None)
    got = model(input_ids=ids, labels=ids)
    assert torch.equal(got.loss, want.loss) and got.logits is None
    assert torch.equal(model(input_ids=ids).logits, want.logits)
    with torch.no_grad():  # validation
        assert torch.equal(model(input_ids=ids, labels=ids).logits, want.logits)
    compiled.close()


def test_refused_where_it_would_not_help_or_cannot_work(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compile_faults(False, 3, on_gpu=False) == []
    (fault,) = compile_faults(True, 3, on_gpu=False)
    assert "stage 3" in fault.problem and "stage 0, 1 or 2" in fault.remedy
    monkeypatch.setenv("CXX", "/nowhere/c++")
    (fault,) = compile_faults("max-autotune", 2, on_gpu=False)
    assert "/nowhere/c++ was not found" in fault.problem


def test_preflight_refuses_stage_3(embedded_shards: Path, tmp_path: Path) -> None:
    settings = {"data.shards": str(embedded_shards), "output": str(tmp_path), "train.compile": "true"}
    with pytest.raises(UserError, match=r"train\.compile = True: at ZeRO stage 3"):
        prepare(load_config(EMBEDDED, settings), DS_CONFIGS / "zero3.json", World())


@pytest.mark.parametrize(
    ("given", "read"), [("true", True), ("false", False), ("max-autotune", "max-autotune")]
)
def test_the_setting_as_given_on_the_command_line(given: str, read: Any) -> None:
    assert load_config(EMBEDDED, {"train.compile": given}).train.compile == read


def test_another_mode_is_refused() -> None:
    with pytest.raises(UserError, match=r"train\.compile"):
        load_config(EMBEDDED, {"train.compile": "reduce-overhead"})
