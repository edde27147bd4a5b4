"""`train.lora`: adapters at every ZeRO stage, their checkpoints, their exports, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
)
from typer.testing import CliRunner

from gaguide.cli import make_app
from gaguide.config import EMBEDDED, LoraSection, load_config
from gaguide.distributed import World
from gaguide.errors import UserError
from gaguide.log import read_metrics
from gaguide.model import ModelSource
from gaguide.model.lora import check_adapter_guides, find_adapter, linear_layers
from gaguide.model.quantize import round_to_4_bits
from gaguide.publish.push import check_push
from gaguide.train.job import Job
from gaguide.train.precheck import precheck
from gaguide.train.preflight import prepare
from gaguide.train.resume import read_manifest, refuse_changes
from tests.support.models import CONFIGS, tiny_model
from tests.support.ranks import DS_CONFIGS, run_ranks

# Not imported here: that takes seconds, in each process that collects tests.
pytestmark = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")

SCRIPT = Path(__file__).parent / "variants_script.py"
CURVES = ("loss", "lm_loss", "guidance_loss", "guided_attention", "grad_norm")
LORA = {
    "model.init": "pretrained",
    "train.lora.rank": "4",
    "train.lora.alpha": "12",
    "train.learning_rate": "1e-2",
    "train.warmup_steps": "0",
    "checkpoint.every": "2",
    "checkpoint.keep": "9",
}
IDS = torch.arange(5, 29)[None]


def make_base(shards: Path, folder: Path) -> Path:
    """A pretrained model with the shards' tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(shards / "tokenizer")
    torch.manual_seed(1)
    GPT2LMHeadModel(
        GPT2Config(
            vocab_size=2048, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0
        )
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(embedded_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(embedded_shards, tmp_path_factory.mktemp("base") / "base")


def shipped(stage: int, **changes: Any) -> dict[str, Any]:
    return json.loads((DS_CONFIGS / f"zero{stage}.json").read_text()) | changes


@pytest.fixture(scope="module")
def runs(base: Path, embedded_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every stage on two ranks, then resumed from the middle; bf16; and on one rank, alone and resumed."""
    folder = tmp_path_factory.mktemp("lora")
    place = LORA | {"model.name": str(base)}
    on_two: dict[str, Any] = {}
    for stage in range(4):
        on_two[f"zero{stage}"] = {"ds": shipped(stage), "run": place}
        again = place | {"output": str(folder / f"again{stage}")}
        on_two[f"again{stage}"] = {
            "ds": shipped(stage), "run": again, "copy": f"zero{stage}", "forget": "step-00000004",
        }  # fmt: skip
    bf16 = {"zero_optimization": {"stage": 3}, "bf16": {"enabled": True}}
    on_two["bf16"] = {"ds": bf16, "run": place}
    moved = place | {"output": str(folder / "moved")}
    on_one = {
        "alone": {"ds": shipped(0), "run": place},
        "moved": {"ds": shipped(3), "run": moved, "copy": "zero2", "forget": "step-00000004"},
    }
    for ranks, spec in ((2, on_two), (1, on_one)):
        path = folder / f"spec{ranks}.json"
        path.write_text(json.dumps(spec))
        done = run_ranks(SCRIPT, [str(embedded_shards), str(folder), str(path)], ranks)
        assert done.returncode == 0, done.stdout
    return folder


def curve(run: Path, name: str) -> list[float | None]:
    return [record[name] for record in read_metrics(run / "metrics.jsonl")]


def adapter(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(IDS).logits


@pytest.fixture(scope="module")
def quantized(base: Path, embedded_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On a base in 4 bits: stages 0 and 2 on two ranks, the second resumed from the middle."""
    pytest.importorskip("bitsandbytes")
    folder = tmp_path_factory.mktemp("qlora")
    place = LORA | {"model.name": str(base), "train.lora.quantize": "nf4"}
    again = place | {"output": str(folder / "again")}
    spec = {
        "zero0": {"ds": shipped(0), "run": place},
        "zero2": {"ds": shipped(2), "run": place},
        "again": {"ds": shipped(2), "run": again, "copy": "zero2", "forget": "step-00000004"},
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    done = run_ranks(SCRIPT, [str(embedded_shards), str(folder), str(folder / "spec.json")], 2)
    assert done.returncode == 0, done.stdout
    return folder


@pytest.mark.processes
def test_adapters_on_a_base_in_4_bits(quantized: Path, base: Path) -> None:
    import peft

    for field in CURVES:
        assert curve(quantized / "again", field) == curve(quantized / "zero2", field)
        for one, other in zip(
            curve(quantized / "zero0", field), curve(quantized / "zero2", field), strict=True
        ):
            assert one == (None if other is None else pytest.approx(other, rel=2e-5)), field
    ours, theirs = adapter(quantized / "again"), adapter(quantized / "zero2")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    run = quantized / "zero2"
    rounded = AutoModelForCausalLM.from_pretrained(base)
    round_to_4_bits(rounded, linear_layers(rounded))
    merged = AutoModelForCausalLM.from_pretrained(run / "model")
    adapted = peft.PeftModel.from_pretrained(rounded, run / "adapter")
    torch.testing.assert_close(logits(adapted), logits(merged), rtol=1e-4, atol=1e-5)
    saved = torch.load(
        run / "checkpoints" / "step-00000004" / "state" / "mp_rank_00_model_states.pt", weights_only=False
    )
    assert all(".lora_" in key for key in saved["module"])


@pytest.mark.processes
@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3", "alone", "moved"])
def test_guided_adapters_train_alike_at_every_stage_and_on_one_rank(runs: Path, name: str) -> None:
    for field in CURVES:
        ours, reference = curve(runs / name, field), curve(runs / "zero0", field)
        assert len(ours) == len(reference) == 4
        for one, other in zip(ours, reference, strict=True):  # None: no query of a batch sees a target
            assert one == (None if other is None else pytest.approx(other, rel=2e-5)), field
    assert max(curve(runs / "zero0", "guidance_loss")) > 0
    before, *_, after = read_metrics(runs / name / "validation.jsonl")
    assert after["lm_loss"] < before["lm_loss"] - 0.01
    for key, weights in adapter(runs / name).items():
        torch.testing.assert_close(weights, adapter(runs / "zero0")[key], rtol=1e-3, atol=1e-5)


@pytest.mark.processes
@pytest.mark.parametrize("stage", range(4))
def test_a_resumed_run_repeats_the_uninterrupted_one_bit_for_bit(runs: Path, stage: int) -> None:
    whole, again = runs / f"zero{stage}", runs / f"again{stage}"
    for field in CURVES:
        assert curve(again, field) == curve(whole, field)
    ours, theirs = adapter(again), adapter(whole)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    merged = [load_file(run / "model" / "model.safetensors") for run in (whole, again)]
    assert all(torch.equal(merged[0][name], merged[1][name]) for name in merged[0])


@pytest.mark.processes
@pytest.mark.parametrize("name", ["zero0", "zero1", "zero2", "zero3"])
def test_a_checkpoint_holds_the_adapters_alone(runs: Path, name: str) -> None:
    state = runs / name / "checkpoints" / "step-00000004" / "state"
    for path in state.glob("*model_states.pt"):
        saved = torch.load(path, weights_only=False)
        assert saved["module"] and all(".lora_" in key for key in saved["module"])
        assert not saved.get("frozen_param_fragments") and not saved.get("frozen_param_shapes")
    count = json.loads((runs / name / "summary.json").read_text())["adapter"]["parameters"]
    # Weights and two moments in fp32, weights again for each rank, and DeepSpeed's own records.
    whole = sum(path.stat().st_size for path in state.iterdir())
    assert whole < 4 * count * 5 + 200_000 < (runs / name / "model" / "model.safetensors").stat().st_size * 3


@pytest.mark.processes
@pytest.mark.parametrize("name", ["zero2", "bf16"])
def test_adapter_and_merged_model_compute_the_same(runs: Path, base: Path, name: str) -> None:
    import peft

    run = runs / name
    merged = AutoModelForCausalLM.from_pretrained(run / "model")
    original = AutoModelForCausalLM.from_pretrained(base)
    plain = logits(original)
    adapted = peft.PeftModel.from_pretrained(original, run / "adapter")
    torch.testing.assert_close(logits(adapted), logits(merged), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits(merged), plain, atol=1e-3)
    through_base = peft.AutoPeftModelForCausalLM.from_pretrained(run / "adapter")
    assert torch.equal(logits(through_base), logits(adapted))
    before, after = load_file(base / "model.safetensors"), load_file(run / "model" / "model.safetensors")
    assert before.keys() == after.keys()
    for key, weights in after.items():
        has_adapter = key.endswith(".weight") and any(part in key for part in ("attn.c_", "mlp.c_"))
        assert torch.equal(weights, before[key]) != has_adapter, key
    written = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == str(base) and written["r"] == 4
    assert written["target_modules"] == ["c_attn", "c_proj", "c_fc"]
    assert AutoTokenizer.from_pretrained(run / "adapter").vocab_size == 2048


@pytest.mark.processes
def test_records_and_card_say_what_was_trained(runs: Path) -> None:
    summary = json.loads((runs / "zero2" / "summary.json").read_text())
    assert summary["trained_parameters"] == summary["adapter"]["parameters"] == 4 * 2 * (128 + 64 + 160 + 160)
    card = (runs / "zero2" / "model" / "README.md").read_text()
    assert "LoRA of rank 4, alpha 12, dropout 0 on c_attn, c_proj, c_fc" in card
    assert "library_name: transformers" in card
    own = (runs / "zero2" / "adapter" / "README.md").read_text()
    assert "library_name: peft" in own and "PeftModel.from_pretrained" in own
    with pytest.raises(UserError, match="their base is a folder of this machine"):
        check_push(runs / "zero2", "me/name", adapter=True)
    report = CliRunner().invoke(make_app(), ["report", str(runs / "zero2"), "--output", str(runs / "r.html")])
    assert report.exit_code == 0 and "parameters trained" in (runs / "r.html").read_text()


@pytest.mark.processes
def test_exports_of_a_checkpoint(runs: Path, base: Path, tmp_path: Path) -> None:
    def export(*more: str) -> Any:
        return CliRunner().invoke(make_app(), ["checkpoint", "export", *more])

    run = str(runs / "zero3")
    assert export(run, "--output", str(tmp_path / "merged")).exit_code == 0
    assert export(run, "--output", str(tmp_path / "adapter"), "--adapter").exit_code == 0
    for name, file in (("merged", "model"), ("adapter", "adapter_model")):
        ours = load_file(tmp_path / name / f"{file}.safetensors")
        theirs = load_file(runs / "zero3" / ("model" if name == "merged" else name) / f"{file}.safetensors")
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    copy = shutil.copytree(base, tmp_path / "copy")
    moved = ["--output", str(tmp_path / "moved"), "--base", str(copy)]
    assert export(run, "--step", "2", *moved).exit_code == 0
    model = AutoModelForCausalLM.from_pretrained(copy)
    model.transformer.wte.weight.data[0, 0] += 1
    model.save_pretrained(copy)
    wrong = export(run, "--output", str(tmp_path / "wrong"), "--base", str(copy))
    assert "not those that the adapters were trained on" in str(wrong.exception)
    half = export(run, "--output", str(tmp_path / "half"), "--adapter", "--dtype", "bf16")
    assert "adapters are written in fp32" in str(half.exception)
    assert not (tmp_path / "wrong").exists() and not (tmp_path / "half").exists()


def job(base: Path, shards: Path, output: Path, **more: str) -> Job:
    settings = LORA | {
        "data.shards": str(shards),
        "data.block_length": "32",
        "model.name": str(base),
        "output": str(output),
    }
    return prepare(load_config(EMBEDDED, settings | more), DS_CONFIGS / "zero2.json", World())


@pytest.mark.processes
def test_another_base_or_other_adapters_cannot_resume(
    runs: Path, base: Path, embedded_shards: Path, tmp_path: Path
) -> None:
    saved = read_manifest(runs / "zero2" / "checkpoints" / "step-00000004")
    other = shutil.copytree(base, tmp_path / "other")
    model = AutoModelForCausalLM.from_pretrained(other)
    model.transformer.ln_f.bias.data += 1
    model.save_pretrained(other)
    for folder, changes, reason in (
        (other, {}, "base weights fixes what the adapters are trained on"),
        (base, {"train.lora.rank": "5"}, "train.lora fixes which parameters are trained"),
        (base, {"train.lora.targets": "c_attn"}, "train.lora fixes which parameters are trained"),
    ):
        found = job(folder, embedded_shards, runs / "zero2", **changes)
        fault = refuse_changes(saved, found.identity, found.run, runs / "zero2")
        assert fault is not None and reason in fault.problem
        assert f"give {runs / 'zero2' / 'model'}" in fault.remedy
    with pytest.raises(UserError, match=r"model\.name"):  # its weights are nowhere else
        job(tmp_path / "gone", embedded_shards, runs / "zero2")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.lora.targets": "q_proj"}, r"matches no linear layer .*\n.*all-linear, c_attn, c_proj, c_fc"),
        ({"train.lora.targets": "[wte, lm_head]"}, "embeddings and the output layer have no adapter"),
        ({"train.lora.rank": "64"}, "train.lora.rank = 64: must be at most 32"),
        ({"train.lora.rank": "0"}, "train.lora.rank"),
        ({"train.lora.dropout": "1"}, "train.lora.dropout"),
        ({"train.lora.alpha": "0"}, "train.lora.alpha"),
        ({"train.lora.ranks": "4"}, "did you mean 'rank'"),
        ({"train.lora.targets": "[]"}, "train.lora.targets"),
        ({"train.freeze": "embeddings"}, "only one of lora and freeze"),
        ({"model.init": "scratch"}, "adapts a pretrained model"),
        ({"model.resize_embeddings": "true"}, "trains no embeddings"),
        ({"init_from": "run"}, "needs its base in a folder"),
        ({"train.lora.targets": "h.1.mlp.c_fc", "guidance.layers": "1"}, "no adapter influences"),
    ],
)
def test_refused(
    base: Path, embedded_shards: Path, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        job(base, embedded_shards, tmp_path, **changes)


def test_without_peft_nothing_starts(
    base: Path, embedded_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("gaguide.model.lora.find_spec", lambda name: None if name == "peft" else find(name))
    with pytest.raises(UserError, match=r"pip install 'gaguide\[lora\]'"):
        job(base, embedded_shards, tmp_path)
    settings = LORA | {"data.shards": str(embedded_shards), "model.name": str(base), "output": str(tmp_path)}
    with pytest.raises(UserError, match=r"pip install 'gaguide\[lora\]'"):
        precheck(None, settings, DS_CONFIGS / "zero2.json", 1)


def test_a_base_in_4_bits_needs_its_library_and_whole_parameters(
    base: Path, embedded_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    with pytest.raises(UserError, match=r"must have only one of compile and lora\.quantize"):
        job(base, embedded_shards, tmp_path, **{"train.lora.quantize": "nf4", "train.compile": "true"})
    with monkeypatch.context() as patched:
        patched.setattr(
            "gaguide.model.quantize.find_spec", lambda name: None if name == "bitsandbytes" else find(name)
        )
        with pytest.raises(UserError, match=r"pip install 'gaguide\[qlora\]'"):
            job(base, embedded_shards, tmp_path, **{"train.lora.quantize": "nf4"})
    pytest.importorskip("bitsandbytes")
    settings = LORA | {
        "data.shards": str(embedded_shards), "data.block_length": "32", "model.name": str(base),
        "output": str(tmp_path), "train.lora.quantize": "nf4",
    }  # fmt: skip
    with pytest.raises(UserError, match="ZeRO stage 3 cannot partition weights in 4 bits"):
        prepare(load_config(EMBEDDED, settings), DS_CONFIGS / "zero3.json", World())

    def broken(*of: object) -> None:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr("gaguide.model.quantize._layer", broken)
    with pytest.raises(UserError, match=r"does not run here \(no kernel image"):
        prepare(load_config(EMBEDDED, settings), DS_CONFIGS / "zero2.json", World())


def test_a_base_in_4_bits_computes_what_its_merge_does() -> None:
    pytest.importorskip("bitsandbytes")
    for kind in CONFIGS:
        model, ids = tiny_model(kind), torch.arange(2, 22)[None]
        source = ModelSource(load_config(EMBEDDED, {}).model, model.config)
        found = find_adapter(model, source, LoraSection(rank=2, quantize="nf4"))
        found.add_to(model, seed=3)
        state = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        for tensor in state.values():
            tensor.normal_(std=0.3)
        with torch.inference_mode():
            ours = model.eval()(ids).logits
            merged = found.merged_into(tiny_model(kind), state).eval()(ids).logits
            torch.testing.assert_close(merged, ours, rtol=1e-4, atol=1e-4)
            assert not torch.allclose(tiny_model(kind)(ids).logits, ours, atol=1e-2)


def test_the_identity_names_adapters_and_the_weights_of_their_base(
    base: Path, embedded_shards: Path, tmp_path: Path
) -> None:
    every = job(base, embedded_shards, tmp_path).identity
    named = job(base, embedded_shards, tmp_path, **{"train.lora.targets": "[c_fc, c_attn, c_proj]"}).identity
    assert every == named and every["base weights"]
    some = job(base, embedded_shards, tmp_path, **{"train.lora.targets": "c_attn"}).identity
    assert {name for name in every if every[name] != some[name]} == {"train.lora"}
    assert len(some["train.lora"]["targets"]) == 2


def test_the_base_of_a_hub_is_named_with_its_commit(tmp_path: Path) -> None:
    model = tiny_model()
    model.config._commit_hash = "0a1b2c"
    section = load_config(EMBEDDED, {"model.name": "someone/base"}).model
    find_adapter(model, ModelSource(section, model.config), LoraSection(rank=2)).write_config(tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (written["base_model_name_or_path"], written["revision"]) == ("someone/base", "0a1b2c")


@pytest.mark.parametrize("kind", CONFIGS)
def test_adapters_begin_alike_and_change_nothing_in_every_architecture(kind: str) -> None:
    source = ModelSource(load_config(EMBEDDED, {}).model, tiny_model(kind).config)
    made = []
    for noise in (0, 7):
        model = tiny_model(kind)
        ids = torch.arange(2, 22)[None]
        with torch.inference_mode():
            before = model(ids).logits
        found = find_adapter(model, source, LoraSection(rank=2))
        torch.manual_seed(noise)
        found.add_to(model, seed=3)
        with torch.inference_mode():
            assert torch.equal(model.eval()(ids).logits, before)
        trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        assert sum(p.numel() for p in trained.values()) == found.parameters
        assert all(".lora_" in name for name in trained)
        made.append(trained)
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    assert any(tensor.any() for tensor in made[0].values())


def test_which_adapters_can_guide() -> None:
    model = tiny_model("llama-grouped-query")
    source = ModelSource(load_config(EMBEDDED, {}).model, model.config)
    attention = {layer: f"model.layers.{layer}.self_attn" for layer in range(3)}
    for target, top, can in (
        ("q_proj", 0, True), ("v_proj", 0, False), ("v_proj", 1, True), ("down_proj", 0, False),
        ("layers.1.self_attn.k_proj", 1, True), ("layers.2.mlp.up_proj", 2, False),
    ):  # fmt: skip
        found = find_adapter(model, source, LoraSection(rank=2, targets=(target,)))
        if can:
            check_adapter_guides(found, attention, top)
        else:
            with pytest.raises(UserError, match="no adapter influences"):
                check_adapter_guides(found, attention, top)


def test_a_model_with_quantized_weights_is_refused(base: Path, embedded_shards: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(base, tmp_path / "quantized")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"quantized \(bitsandbytes\)"):
        job(folder, embedded_shards, tmp_path / "out")


def test_the_folder_of_an_adapter_is_not_a_model(base: Path, embedded_shards: Path, tmp_path: Path) -> None:
    import peft

    model = GPT2LMHeadModel.from_pretrained(base)
    config = peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True)
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match="is the folder of an adapter"):
        job(tmp_path / "adapter", embedded_shards, tmp_path / "out")
    done = CliRunner().invoke(
        make_app(), ["attention", "--model", str(tmp_path / "adapter"), "--text", "a b"]
    )
    assert done.exit_code != 0
