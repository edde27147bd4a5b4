"""Preflight finds every fault of a run before training and names the field."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel, T5Config

from gaguide.config import EMBEDDED, load_config
from gaguide.distributed import World
from gaguide.errors import UserError
from gaguide.train.job import Job
from gaguide.train.preflight import prepare
from tests.support.ranks import DS_CONFIGS

ZERO2 = DS_CONFIGS / "zero2.json"


def job(shards: Path, folder: Path, /, ranks: int = 2, json: Path = ZERO2, **changes: str) -> Job:
    settings = {"data.shards": str(shards), "output": str(folder)} | changes
    return prepare(load_config(EMBEDDED, settings), json, World(size=ranks))


@pytest.mark.parametrize(
    ("changes", "field", "remedy"),
    [
        ({"data.shards": "/nowhere"}, "data.shards", "gaguide data build"),
        ({"data.block_length": "300"}, "data.block_length", "at most 256"),
        ({"guidance.experiment": "5-everything"}, "guidance.experiment", "4-transition"),
        ({"guidance.layers": "1,9"}, "guidance.layers", "0 to 3"),
        ({"train.global_batch": "7"}, "train.global_batch", "multiple of 2"),
        ({"train.micro_batch": "3"}, "train.micro_batch", "one of 1, 2, 4, 8"),
        ({"model.name": "/no/model", "model.init": "pretrained"}, "model.name", "save_pretrained"),
        ({"model.name": "huge"}, "model.name", "gpt2-xl"),
        ({"output": "/proc/nothing"}, "output", "another folder"),
        ({"output": "a\0b"}, "output", "another folder"),
        ({"model.revision": "v1"}, "model.revision", "hub models"),
        ({"model.attention": "flash_attention_2"}, "model.attention", "bf16 on a GPU"),
        ({"model.attention": "flex_attention"}, "model.attention", "use sdpa or eager"),
        ({"model.attention": "eager", "train.compile": "true"}, "model.attention", "train.compile: false"),
        (
            {"model.attention": "eager", "data.isolate_documents": "true"},
            "model.attention",
            "isolate_documents: false",
        ),
    ],
)
def test_fault(
    embedded_shards: Path, tmp_path: Path, changes: dict[str, str], field: str, remedy: str
) -> None:
    with pytest.raises(UserError) as error:
        job(embedded_shards, tmp_path, **changes)
    assert error.value.faults[0].field.startswith(field)
    assert remedy in str(error.value)


@pytest.mark.parametrize("name", ["model/weights.bin", "config.yaml", "deepspeed.json"])
def test_nothing_of_the_users_is_replaced(embedded_shards: Path, tmp_path: Path, name: str) -> None:
    """A run into a folder with a model of one's own would remove it at the end."""
    own = tmp_path / name
    own.parent.mkdir(exist_ok=True)
    own.write_text("my own")
    with pytest.raises(UserError) as error:
        job(embedded_shards, tmp_path)
    (fault,) = error.value.faults
    assert fault.field == "output" and f"holds {name.partition('/')[0]}," in fault.problem
    (tmp_path / "checkpoints").mkdir()  # of a run, whose own files these are
    job(embedded_shards, tmp_path)


def test_a_model_with_a_smaller_vocabulary_is_refused(embedded_shards: Path, tmp_path: Path) -> None:
    GPT2LMHeadModel(
        GPT2Config(vocab_size=100, n_layer=4, n_head=4, n_embd=8, n_positions=256)
    ).save_pretrained(tmp_path / "small")
    with pytest.raises(UserError, match="vocabulary of 2048 entries, the model has 100"):
        job(embedded_shards, tmp_path, **{"model.name": str(tmp_path / "small"), "model.init": "pretrained"})


def test_too_many_heads_for_the_model(embedded_shards: Path, tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=2048, n_layer=2, n_head=2, n_embd=8, n_positions=256)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "narrow")
    changes = {
        "model.name": str(tmp_path / "narrow"),
        "model.init": "scratch",
        "guidance.experiment": "3-negation",
    }
    with pytest.raises(UserError, match="2 heads in each layer"):
        job(embedded_shards, tmp_path, **changes)


def test_missing_json_and_contradictions_in_it(embedded_shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must be one of .*zero2, .*or the path of a file"):
        job(embedded_shards, tmp_path, json=tmp_path / "missing.json")
    wrong = tmp_path / "wrong.json"
    for content, message in {
        '{"zero_optimization": true}': "must be an object",
        '{"zero_optimization": {"stage": "auto"}}': "zero_optimization.stage",
        '{"bf16": null}': "must be an object",
        '{"tensorboard": {"enable": true}}': "tensorboard.enable",
        '{"comms_logger": {"verbos": true}}': "comms_logger.verbos",
        '{"data_types": {"grad_accum_dtype": "bf16"}}': "only accumulation in fp32",
        '{"zero_optimization": {"stage": 0}, "bf16": {"enabled": true}}': "no fp32 weights",
        '{"wall_clock_breakdown": 3}': "must be true or false",
        '{"compiling": {}}': "unknown key",
        "[" * 100_000: "is not valid JSON",
    }.items():
        wrong = tmp_path / "wrong.json"
        wrong.write_text(content)
        with pytest.raises(UserError, match=message):
            job(embedded_shards, tmp_path, json=wrong)
    wrong.write_text('{"train_batch_size": 8, "zero_optimisation": {}, "optimizer": {"type": "Adam"}}')
    with pytest.raises(UserError) as error:
        job(embedded_shards, tmp_path, json=wrong)
    text = str(error.value)
    assert "the run has 16" in text and "did you mean 'zero_optimization'?" in text
    assert "train.learning_rate" in text
    wrong.write_text(
        '{"zero_optimization": {"stage": 2}, "bf16": {"enabled": true}, "fp16": {"enabled": true}}'
    )
    with pytest.raises(UserError, match="are enabled together"):
        job(embedded_shards, tmp_path, json=wrong)
    wrong.write_text('{"zero_optimization": {"stage": 1}, "bf16": {"enabled": true}}')
    with pytest.raises(UserError, match="accumulate 4 micro batches in bf16"):
        job(embedded_shards, tmp_path, json=wrong, **{"train.micro_batch": "2"})


def test_models_that_cannot_be_trained_or_guided(embedded_shards: Path, tmp_path: Path) -> None:
    """Found by the architecture, before weights are read."""
    shape = {"vocab_size": 2048, "hidden_size": 32, "n_layer": 2, "n_head": 4}
    BloomForCausalLM(BloomConfig(**shape)).save_pretrained(tmp_path / "bloom")
    T5Config(vocab_size=2048).save_pretrained(tmp_path / "t5")
    GPT2Config(vocab_size=2048, n_layer=2, n_head=4, n_embd=32, n_positions=256).save_pretrained(
        tmp_path / "bare"
    )
    for name, init, message in (
        ("bloom", "pretrained", r"AttentionInterface|causal attention modules|scaled_dot_product"),
        ("t5", "scratch", "cannot be built"),
        ("bare", "pretrained", "contains no weights"),
    ):
        with pytest.raises(UserError, match=message):
            job(embedded_shards, tmp_path, **{"model.name": str(tmp_path / name), "model.init": init})


def test_settings_that_would_be_ignored_are_refused() -> None:
    for changes, message in (
        ({"guidance.lexicons": "words.yaml"}, "lexicons apply to a plan only"),
        (
            {"guidance.experiment": "finetuned", "guidance.layers": "1"},
            "layers apply only if heads are guided",
        ),
        (
            {"guidance.experiment": "finetuned", "guidance.plan": "[{pattern: self, heads: 0, layers: []}]"},
            "at least 1",
        ),
        ({"seed": str(2**63)}, "seed"),
        ({"data.block_length": "1"}, "greater than or equal to 2"),
    ):
        with pytest.raises(UserError, match=message):
            load_config(EMBEDDED, changes)


def test_an_offset_beyond_the_block_is_refused(embedded_shards: Path, tmp_path: Path) -> None:
    changes = {"guidance.experiment": "finetuned", "guidance.plan": "[{pattern: offset-128, heads: 0}]"}
    with pytest.raises(UserError, match="never has a target"):
        job(embedded_shards, tmp_path, **changes)


def test_a_precision_that_the_device_lacks_is_refused(embedded_shards: Path, tmp_path: Path) -> None:
    from deepspeed.accelerator import get_accelerator

    if get_accelerator().is_fp16_supported():
        pytest.skip("this device trains in fp16")
    half = tmp_path / "fp16.json"
    half.write_text('{"fp16": {"enabled": true}}')
    with pytest.raises(UserError, match="does not train in fp16"):
        job(embedded_shards, tmp_path, json=half)


def test_all_faults_come_at_once(embedded_shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        job(
            embedded_shards,
            tmp_path,
            **{"guidance.layers": "9", "data.block_length": "999", "train.global_batch": "3"},
        )
    assert len(error.value.faults) == 3


def test_identity_follows_what_a_resumed_run_must_share(embedded_shards: Path, tmp_path: Path) -> None:
    base = job(embedded_shards, tmp_path)
    assert base.identity == job(embedded_shards, tmp_path, ranks=4, **{"train.micro_batch": "2"}).identity
    lexicon = tmp_path / "own.yaml"
    identities = []
    for word in ("class", "module"):
        lexicon.write_text(f"own: [{word}]")
        plan = {"guidance.experiment": "finetuned", "guidance.plan": "[{pattern: own, heads: 0}]"}
        identities.append(
            job(embedded_shards, tmp_path, **plan | {"guidance.lexicons": str(lexicon)}).identity
        )
    assert identities[0] != identities[1]
    for changes in (
        {"seed": "1"},
        {"train.steps": "301"},
        {"guidance.weight": "1"},
        {"train.learning_rate": "1e-4"},
    ):
        assert base.identity != job(embedded_shards, tmp_path, **changes).identity
