"""The DeepSpeed JSON: `auto` is filled in; wrong keys and contradictions are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gaguide.config import BatchPlan
from gaguide.engine.config import DevicePrecisions, RunValues, load_deepspeed_json, resolve_deepspeed
from gaguide.engine.config_resolved import DeepSpeedConfig
from gaguide.errors import UserError
from tests.support.ranks import DS_CONFIGS

GPU = DevicePrecisions(auto_bf16=True, bf16=True, fp16=True)
CPU = DevicePrecisions(auto_bf16=False, bf16=True, fp16=False)
OUTPUT = Path("out")
NAMES = ("zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload", "zero3_nvme")


def resolve(
    config: dict[str, Any], device: DevicePrecisions = GPU, micro: int = 4, ranks: int = 2
) -> DeepSpeedConfig:
    batch = BatchPlan(8, micro, 8 // micro // ranks, ranks)
    return resolve_deepspeed(config, batch, RunValues(1.0, OUTPUT, "test", 768), device)


def faults(config: dict[str, Any], device: DevicePrecisions = GPU, micro: int = 4, ranks: int = 2) -> str:
    with pytest.raises(UserError) as error:
        resolve(config, device, micro, ranks)
    return str(error.value)


def test_the_folder_holds_every_stage_in_both_precisions_and_nothing_else() -> None:
    expected = {f"{name}{kind}.json" for name in NAMES for kind in ("", "_fp16")}
    assert {path.name for path in DS_CONFIGS.glob("*.json")} == expected
    table = (DS_CONFIGS / "README.md").read_text()
    assert all(f"`{name}.json`" in table for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_what_ships_resolves_for_deepspeed(name: str) -> None:
    """Every file in its precision, with batch and clipping, accumulating in fp32 from stage 2 on."""
    from deepspeed.runtime.zero.config import get_zero_config

    kinds = ("bf16 autocast", "fp16 autocast") if name == "zero0" else ("bf16", "fp16")
    for kind, file in zip(kinds, (f"{name}.json", f"{name}_fp16.json")):
        config = resolve(load_deepspeed_json(DS_CONFIGS / file))
        assert config.precision == kind
        batch = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
        assert tuple(config.settings[key] for key in batch) == (8, 4, 1)
        assert config.settings["gradient_clipping"] == 1.0
        stage = int(name[4])
        assert get_zero_config(config.settings).stage == config.zero_stage == stage
        # A single micro batch is not added to anything: with NVMe it need not be kept in fp32.
        if name != "zero1":  # fp16 may, bf16 may not
            assert ("data_types" in config.settings) == (name not in ("zero0", "zero3_nvme"))
        if stage > 1:
            several = resolve(load_deepspeed_json(DS_CONFIGS / file), micro=2)
            assert several.settings["data_types"] == {"grad_accum_dtype": "fp32"}
        assert (config.nvme_folders == [OUTPUT / "nvme"]) == (name == "zero3_nvme")
        assert ("cpu_adam" in config.needed_ops) == (name.partition("_")[2] in ("offload", "nvme"))
    assert resolve(load_deepspeed_json(DS_CONFIGS / f"{name}.json"), CPU).precision == "fp32"
    assert "does not train in fp16" in faults(load_deepspeed_json(DS_CONFIGS / f"{name}_fp16.json"), CPU)


def test_sizes_that_say_auto_follow_the_models_width() -> None:
    auto = dict.fromkeys(("reduce_bucket_size", "stage3_prefetch_bucket_size"), "auto")
    auto["stage3_param_persistence_threshold"] = "auto"
    config = resolve({"zero_optimization": {"stage": 3} | auto, "train_batch_size": "auto"})
    assert config.settings["train_batch_size"] == 8
    zero = config.settings["zero_optimization"]
    assert (zero["reduce_bucket_size"], zero["stage3_prefetch_bucket_size"]) == (768**2, int(0.9 * 768**2))
    assert (config.reduce_bucket_size, config.prefetch_bucket_size) == (768**2, int(0.9 * 768**2))
    assert zero["stage3_param_persistence_threshold"] == 7680


def test_the_throughput_timer_is_off() -> None:
    """It is on by default and waits for the device twice in each micro batch."""
    off = {"throughput": {"enabled": False}}
    for given in ({}, {"timers": {}}, {"timers": off}):
        assert resolve(given).settings["timers"] == off
    on = {"timers": {"throughput": {"enabled": True}}}
    assert "metrics.jsonl has tokens_per_second" in faults(on)


def test_monitors_write_into_the_runs_folder_by_default() -> None:
    monitors = {"csv_monitor": {"enabled": True}, "tensorboard": {"enabled": True, "job_name": "x"}}
    config = resolve(monitors).settings
    assert config["csv_monitor"]["output_path"] == str(OUTPUT / "monitor")
    assert (config["csv_monitor"]["job_name"], config["tensorboard"]["job_name"]) == ("test", "x")


def test_what_deepspeed_would_read_is_what_the_run_reads() -> None:
    """Text for a Boolean, a float for an integer, `auto` for DeepSpeed's default."""
    offload = {"device": "auto", "buffer_count": "4"}
    config = resolve(
        {
            "zero_optimization": {"stage": 3, "reduce_bucket_size": 5e8, "offload_optimizer": offload},
            "bf16": {"enabled": "false"},
            "tensorboard": {"enabled": "auto"},
        }
    )
    zero = config.settings["zero_optimization"]
    assert (zero["reduce_bucket_size"], type(zero["reduce_bucket_size"])) == (500_000_000, int)
    assert zero["offload_optimizer"] == {"buffer_count": 4} and config.needed_ops == ()
    assert config.precision == "fp32" and "auto" not in json.dumps(config.settings)


@pytest.mark.parametrize(
    ("device", "expected"),
    [(GPU, "bf16"), (CPU, "fp32"), (DevicePrecisions(auto_bf16=False, bf16=False, fp16=True), "fp16")],
)
def test_both_halves_may_say_auto(device: DevicePrecisions, expected: str) -> None:
    """As in JSONs for other trainers: bf16 where the device is fast in it, else fp16, else neither."""
    auto = {"bf16": {"enabled": "auto"}, "fp16": {"enabled": "auto", "loss_scale": "auto"}}
    assert resolve({"zero_optimization": {"stage": 2}} | auto, device).precision == expected


def test_a_duplicate_key_is_refused(tmp_path: Path) -> None:
    """As DeepSpeed does; Python's json silently keeps the last."""
    path = tmp_path / "twice.json"
    path.write_text('{"bf16": {"enabled": true}, "zero_optimization": {"stage": 1, "stage": 2}}')
    with pytest.raises(UserError, match="duplicate key stage"):
        load_deepspeed_json(path)


NVME = {"device": "nvme", "nvme_path": "/scratch"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        # Unknown keys at every depth, with what was meant.
        ({"zero_optimisation": {}}, "did you mean 'zero_optimization'?"),
        ({"zero_optimization": {"stage3_prefetch_bucket": 1}}, "did you mean 'stage3_prefetch_bucket_size'?"),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"devise": "cpu"}}},
            "did you mean 'device'",
        ),
        ({"zero_optimization": {"stage": 3, "offload_param": {"pin": True}}}, "offload_param.pin"),
        ({"aio": {"block": 1}, "zero_optimization": {"stage": 3, "offload_optimizer": NVME}}, "'block_size'"),
        ({"aio": {"queue_depth": "8"}}, "aio.queue_depth"),
        ({"comms_logger": {"verbos": True}}, "did you mean 'verbose'?"),
        ({"csv_monitor": {"enable": True}}, "did you mean 'enabled'?"),
        ({"wandb": {"projekt": "x"}}, "did you mean 'project'?"),
        ({"torch_autocast": {"enabled": True, "dtype": "fp8"}}, "torch_autocast.dtype"),
        ({"fp16": {"enabled": True, "loss_scale": "x"}}, "fp16.loss_scale"),
        ({"activation_checkpointing": {}}, "train.gradient_checkpointing"),
        ({"zero_allow_untested_optimizer": True}, "remove it"),
        ({"communication_data_type": "fp16"}, "a key of DeepSpeed that gaguide does not support"),
        ({"steps_per_print": 0}, "1 or more"),
        # Values of the wrong type, and settings that would break exactness or exports.
        ({"zero_optimization": {"stage": 3, "offload_optimizer": "cpu"}}, "offload_optimizer"),
        ({"zero_optimization": {"stage": 2, "zenflow": {}}}, "would not resume exactly"),
        ({"zero_optimization": {"stage": 2, "load_from_fp32_weights": False}}, "rounded weights"),
        ({"zero_optimization": {"stage": 2, "compute_grad_norm": False}}, "nothing is clipped"),
        ({"zero_optimization": {"stage": 2, "round_robin_gradients": True}}, "is lost"),
        (
            {"zero_optimization": {"stage": 2}, "bf16": {"enabled": True, "check_grad_overflow": False}},
            "would reach the weights",
        ),
        # Contradictions.
        ({"gradient_clipping": 0.5}, "the run has 1.0"),
        ({"zero_optimization": {"stage": 0, "offload_optimizer": {"device": "cpu"}}}, "below stage 1"),
        ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, "below stage 3"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": NVME}}, "below stage 3"),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", "nvme_path": "/x"}}},
            "the device is cpu",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_optimizer": NVME | {"buffer_count": 3}}},
            "four tensors",
        ),
        ({"zero_optimization": {"stage": 3, "offload_param": NVME}}, "with 2 ranks"),
        ({"zero_optimization": {"stage": 2}, "aio": {}}, "nothing is offloaded to disk"),
        ({"zero_force_ds_cpu_optimizer": False}, "no optimizer is offloaded"),
        (
            {
                "zero_optimization": {"stage": 3, "offload_optimizer": NVME},
                "zero_force_ds_cpu_optimizer": False,
            },
            "cannot be swapped",
        ),
        ({"zero_optimization": {"stage": 2}, "torch_autocast": {"enabled": True}}, "is for stage 0"),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": True}}, "enabled together"),
        ({"fp16": {"enabled": True}}, "no fp32 weights"),
        ({"zero_optimization": {"stage": 1, "cpu_offload": True}}, "deprecated"),
        (
            {
                "zero_optimization": {"stage": 1},
                "bf16": {"enabled": True, "bf16_master_weights_and_grads": True},
            },
            "would lose the fp32 weights",
        ),
    ],
)
def test_refused(config: dict[str, Any], message: str) -> None:
    assert message in faults(config)


def test_several_faults_are_reported_at_once() -> None:
    text = faults({"zero_optimization": {"stage": 3, "offload_optimizer": {"devise": 1}}, "aio": {"blok": 2}})
    assert "devise" in text and "aio.blok" in text


def test_bf16_at_stage_1_must_not_accumulate_but_fp16_and_offload_may() -> None:
    zero1 = {"zero_optimization": {"stage": 1}}
    assert "accumulate 2 micro batches" in faults(zero1 | {"bf16": {"enabled": True}}, micro=2)
    fp32 = {"grad_accum_dtype": "fp32"}
    assert resolve(zero1 | {"fp16": {"enabled": True}}, micro=2).settings["data_types"] == fp32
    zero1 = json.loads('{"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}}')
    assert resolve(zero1 | {"bf16": {"enabled": True}}, micro=2).settings["data_types"] == fp32
