"""Run by two ranks: one guided step of SGD under each wrapper of other frameworks, beside one process's step.

    torchrun --nproc_per_node 2 wrappers.py FOLDER

Writes FOLDER/differences.json: wrapper → largest difference of any weight from those of the reference, which
takes both ranks' rows in one pass in a model of its own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer, TrainingArguments

from gaguide.guidance import Assignment, GuidancePlan, TokenSet, guide
from gaguide.integrations.transformers import guided
from tests.support.models import random_ids, tiny_model

PLAN = GuidancePlan((Assignment(TokenSet("words", frozenset(range(2, 30))), (0, 3)),), weight=3.0)
RATE = 0.1
IDS = random_ids(4, 21)  # ranks take two rows each
Weights = dict[str, torch.Tensor]


def weights_of(model: torch.nn.Module) -> Weights:
    """Whole parameters by name, gathered where they are sharded, without the wrappers' prefixes."""
    found = {}
    for name, parameter in model.named_parameters():
        whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        found[name[name.index("transformer.") :]] = whole.detach().clone()
    return found


def mine() -> torch.Tensor:
    return IDS[2 * dist.get_rank() :][:2]


def step(model: torch.nn.Module, optimizer: Any, backward: Callable[[torch.Tensor], Any]) -> Weights:
    """The loop that docs/integrations.md shows."""
    with guide(model, PLAN) as guidance:
        out = model(input_ids=mine(), labels=mine(), use_cache=False)
        backward(out.loss + guidance.loss())
    optimizer.step()
    return weights_of(model)


def reference(items: int | None) -> Weights:
    """`items` divides the summed loss where given, as the Trainer counts: every label, the first one too."""
    model = tiny_model("gpt2").train()
    with guide(model, PLAN) as guidance:
        out = model(input_ids=IDS, labels=IDS, use_cache=False, num_items_in_batch=items)
        (out.loss + guidance.loss()).backward()
    torch.optim.SGD(model.parameters(), RATE).step()
    return weights_of(model)


def plain_ddp(_: Path) -> Weights:
    model = DistributedDataParallel(tiny_model("gpt2").train())
    return step(model, torch.optim.SGD(model.parameters(), RATE), torch.Tensor.backward)


def fsdp2(_: Path) -> Weights:
    model = tiny_model("gpt2").train()
    for block in model.transformer.h:
        fully_shard(block)
    fully_shard(model)
    return step(model, torch.optim.SGD(model.parameters(), RATE), torch.Tensor.backward)


def accelerate(_: Path) -> Weights:
    from accelerate import Accelerator

    model = tiny_model("gpt2").train()
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), RATE))
    return step(model, optimizer, accelerator.backward)


def fabric(_: Path) -> Weights:
    from lightning.fabric import Fabric

    runner = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    runner.launch()
    model = tiny_model("gpt2").train()
    model, optimizer = runner.setup(model, torch.optim.SGD(model.parameters(), RATE))
    return step(model, optimizer, runner.backward)


def _train(folder: Path, more: dict[str, Any]) -> Weights:
    rows = [{"input_ids": row, "labels": row} for row in IDS[[0, 2, 1, 3]]]  # ranks are dealt rows by turns
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "max_steps": 1, "optim": "sgd",
        "learning_rate": RATE, "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "report_to": "none",
        "save_strategy": "no", "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip
    arguments = TrainingArguments(str(folder), **(defaults | more))
    trainer = guided(Trainer)(model=tiny_model("gpt2"), args=arguments, train_dataset=rows, guidance=PLAN)
    trainer.train()
    return weights_of(trainer.model)


def trainer_ddp(folder: Path) -> Weights:
    return _train(folder, {})


def trainer_fsdp2(folder: Path) -> Weights:
    return _train(
        folder, {"fsdp": "full_shard", "fsdp_config": {"version": 2, "reshard_after_forward": True}}
    )


def trainer_deepspeed(folder: Path) -> Weights:
    config = {
        "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto",
        "train_batch_size": "auto", "zero_optimization": {"stage": 2}, "gradient_clipping": 0.0,
        "zero_force_ds_cpu_optimizer": False, "zero_allow_untested_optimizer": True,
    }  # fmt: skip
    return _train(folder, {"deepspeed": config})


WRAPPERS = (plain_ddp, fsdp2, accelerate, fabric, trainer_ddp, trainer_fsdp2, trainer_deepspeed)


def main() -> None:
    folder = Path(sys.argv[1])
    dist.init_process_group("gloo")
    differences = {}
    for wrapper in WRAPPERS:
        want = reference(IDS.numel() if "trainer" in wrapper.__name__ else None)
        got = wrapper(folder / wrapper.__name__)
        assert got.keys() == want.keys(), (wrapper.__name__, got.keys() ^ want.keys())
        differences[wrapper.__name__] = max(float((got[name] - want[name]).abs().max()) for name in want)
        print(wrapper.__name__, differences[wrapper.__name__], flush=True)
    if dist.get_rank() == 0:
        (folder / "differences.json").write_text(json.dumps(differences), "utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
