"""`train.lora`: which layers get adapters, their first weights, their identity, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel

from gaguide.config import EMBEDDED, LoraSection, load_config
from gaguide.distributed import World
from gaguide.errors import UserError
from gaguide.evaluate.model_folder import find_model_folder
from gaguide.model import ModelSource
from gaguide.model.lora import check_adapter_guides, find_adapter
from gaguide.train.precheck import precheck
from gaguide.train.preflight import prepare
from tests.support.adapters import LORA, adapter_job, make_base
from tests.support.models import CONFIGS, tiny_model
from tests.support.ranks import DS_CONFIGS

# Not imported here: that takes seconds, in each process that collects tests.
pytestmark = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")


@pytest.fixture(scope="module")
def base(embedded_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(embedded_shards, tmp_path_factory.mktemp("base") / "base")


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
        adapter_job(base, embedded_shards, tmp_path, **changes)


def test_without_peft_nothing_starts(
    base: Path, embedded_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("gaguide.model.lora.find_spec", lambda name: None if name == "peft" else find(name))
    with pytest.raises(UserError, match=r"pip install 'gaguide\[lora\]'"):
        adapter_job(base, embedded_shards, tmp_path)
    settings = LORA | {"data.shards": str(embedded_shards), "model.name": str(base), "output": str(tmp_path)}
    with pytest.raises(UserError, match=r"pip install 'gaguide\[lora\]'"):
        precheck(None, settings, DS_CONFIGS / "zero2.json", 1)


def test_a_base_in_4_bits_needs_its_library_and_whole_parameters(
    base: Path, embedded_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    with pytest.raises(UserError, match=r"must have only one of compile and lora\.quantize"):
        adapter_job(
            base, embedded_shards, tmp_path, **{"train.lora.quantize": "nf4", "train.compile": "true"}
        )
    with monkeypatch.context() as patched:
        patched.setattr(
            "gaguide.model.quantize.find_spec", lambda name: None if name == "bitsandbytes" else find(name)
        )
        with pytest.raises(UserError, match=r"pip install 'gaguide\[qlora\]'"):
            adapter_job(base, embedded_shards, tmp_path, **{"train.lora.quantize": "nf4"})
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
    every = adapter_job(base, embedded_shards, tmp_path).identity
    by_name = {"train.lora.targets": "[c_fc, c_attn, c_proj]"}
    named = adapter_job(base, embedded_shards, tmp_path, **by_name).identity
    assert every == named and every["base weights"]
    some = adapter_job(base, embedded_shards, tmp_path, **{"train.lora.targets": "c_attn"}).identity
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
    for target, guided, unmoved in (
        ("q_proj", [0], ""), ("v_proj", [0, 1], "0"), ("v_proj", [1], ""), ("down_proj", [0], "0"),
        ("layers.1.self_attn.k_proj", [1, 2], ""), ("layers.1.mlp.up_proj", [0, 1, 2], "0, 1"),
    ):  # fmt: skip
        found = find_adapter(model, source, LoraSection(rank=2, targets=(target,)))
        if not unmoved:
            check_adapter_guides(found, model, guided)
        else:
            with pytest.raises(UserError, match=f"no adapter influences .* in layers {unmoved}\n"):
                check_adapter_guides(found, model, guided)


def test_a_model_with_quantized_weights_is_refused(base: Path, embedded_shards: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(base, tmp_path / "quantized")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"quantized \(bitsandbytes\)"):
        adapter_job(folder, embedded_shards, tmp_path / "out")


def test_the_folder_of_an_adapter_is_not_a_model(base: Path, embedded_shards: Path, tmp_path: Path) -> None:
    import peft

    model = GPT2LMHeadModel.from_pretrained(base)
    config = peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True)
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match="is the folder of an adapter"):
        adapter_job(tmp_path / "adapter", embedded_shards, tmp_path / "out")
    with pytest.raises(UserError, match="is the folder of an adapter"):
        find_model_folder(str(tmp_path / "adapter"))
