"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv:2106.09685) on a frozen base model, by PEFT.

The adapters are put into the base model itself, which stays a transformers model: guidance, validation and
evaluation see no wrapper. This module needs peft (`pip install 'gaguide[lora]'`) where adapters are made.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from gaguide.errors import Fault, FaultCollector, UserError
from gaguide.files import write_json
from gaguide.model.content import ADAPTER_CONFIG
from gaguide.model.quantize import check_bitsandbytes, quantize, round_to_4_bits
from gaguide.model.reach import movable_from, unmoved_layers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from gaguide.config import LoraSection
    from gaguide.model.load import ModelSource

ADAPTER_WEIGHTS = "adapter_model.safetensors"
"""PEFT's file of an adapter's weights."""
ALL_LINEAR = "all-linear"
_NAME = "default"
"""PEFT's name of the only adapter, part of its parameters' names."""
_FIELD = "train.lora"
_TARGETS = f"{_FIELD}.targets"


@dataclass(frozen=True)
class Adapter:
    """The adapters of a run, without their weights."""

    base: ModelSource
    """The model that they are trained on, which keeps its weights."""
    rank: int
    """Width between the two matrices of each."""
    alpha: float
    """Their contribution is scaled by alpha / rank."""
    dropout: float
    """Dropout of their input in training."""
    targets: tuple[str, ...]
    """Names of the linear layers that have one, in the model's order."""
    named: tuple[str, ...]
    """The same as the shortest ends of names that PEFT matches, for its adapter_config.json."""
    transposed: bool
    """Whether those layers are GPT-2's Conv1D, which stores its weight transposed."""
    parameters: int
    """Number of the adapters' parameters."""
    quantized: tuple[str, ...] = ()
    """Names of the base's linear layers that are kept in 4 bits."""
    packed: int = 0
    """Number of their weights."""

    def add_to(self, model: PreTrainedModel, seed: int) -> None:
        """Put the adapters into `model`, in place: only they are trained from now on, and they change nothing
        yet.

        Their weights depend on `seed` alone, as long as `model` is on the CPU.
        """
        import torch
        from peft import inject_adapter_in_model

        if self.quantized:
            quantize(model, self.quantized)
        torch.manual_seed(seed)
        inject_adapter_in_model(self._config(), model, _NAME)

    def build_base(self) -> PreTrainedModel:
        """The base with its weights; a `UserError` if these have changed since the run or export began."""
        from gaguide.model.fingerprint import model_fingerprint
        from gaguide.model.load import build_model

        section = self.base.section
        if self.base.weights not in ("", model_fingerprint(section, self.base.config)[1]):
            problem = "its weights are not those that the adapters were trained on: its files have changed"
            remedy = (
                "restore them, or give a folder that has them: gaguide checkpoint export RUN --base FOLDER"
            )
            raise UserError.of("model.name", problem, remedy, section.name)
        return build_model(self.base, seed=0)

    def merged_into(self, model: PreTrainedModel, state: Mapping[str, torch.Tensor]) -> PreTrainedModel:
        """`model`, which is the base with its weights, with the adapters of `state` added to them.

        Weights that were kept in 4 bits are rounded as they were, since the adapters were trained on those.
        Raises `RuntimeError` if `state` holds other adapters, or their contribution is not finite.
        """
        import torch
        from peft.tuners.lora import LoraModel

        if self.quantized:
            round_to_4_bits(model, self.quantized)
        tuner = LoraModel(model, self._config(), _NAME)
        own = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        if differing := sorted(set(own) ^ set(state)):
            raise RuntimeError(f"the checkpoint does not fit the adapters: {', '.join(differing[:3])}")
        model.load_state_dict(dict(state), strict=False)
        try:
            with torch.no_grad():
                return cast("PreTrainedModel", tuner.merge_and_unload(safe_merge=True))
        except ValueError as error:
            raise RuntimeError(str(error)) from None

    def write_config(self, folder: Path) -> None:
        """Write PEFT's adapter_config.json into `folder`."""
        config = self._config()
        config.inference_mode = True
        config.save_pretrained(str(folder))
        path = folder / ADAPTER_CONFIG
        written = json.loads(path.read_text("utf-8"))
        write_json(path, written | {"target_modules": list(self.named)})  # PEFT's order is that of a set

    def save(self, folder: Path, state: Mapping[str, torch.Tensor]) -> None:
        """Write the adapters with the weights of `state` into `folder`, for PeftModel.from_pretrained."""
        from safetensors.torch import save_file

        tensors = {
            f"base_model.model.{name.replace(f'.{_NAME}.', '.')}": tensor.contiguous()
            for name, tensor in state.items()
        }
        save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        self.write_config(folder)

    @property
    def identity(self) -> dict[str, Any]:
        """Settings that decide the form of a saved state and its computation, as plain JSON."""
        form = {"rank": self.rank, "alpha": self.alpha, "targets": list(self.targets)}
        return form | ({"quantize": "nf4"} if self.quantized else {})

    @property
    def description(self) -> str:
        """In a few words, for the console and tables."""
        base = " of a base in 4 bits" if self.quantized else ""
        return f"LoRA of rank {self.rank}, alpha {self.alpha:g} on {', '.join(self.named)}{base}"

    def as_record(self) -> dict[str, Any]:
        """As plain JSON, for summary.json."""
        return {
            "rank": self.rank,
            "alpha": self.alpha,
            "dropout": self.dropout,
            "targets": list(self.named),
            "parameters": self.parameters,
            "quantize": "nf4" if self.quantized else None,
        }

    def _config(self) -> Any:
        from peft import LoraConfig

        section = self.base.section
        local = Path(section.name).expanduser()
        commit = getattr(self.base.config, "_commit_hash", None)  # of a hub model, whose newest may change
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # a float scales as well
            lora_dropout=self.dropout,
            target_modules=list(self.named),
            fan_in_fan_out=self.transposed,
            task_type="CAUSAL_LM",
            base_model_name_or_path=str(local.absolute()) if local.is_dir() else section.name,
            revision=section.revision or commit,
        )


def check_libraries(section: LoraSection) -> None:
    """Raise a `UserError` if a library that `section` needs is not installed; imports nothing."""
    if section.quantize:
        check_bitsandbytes()
    if find_spec("peft") is None:
        raise UserError.of(
            _FIELD, "needs peft, which is not installed", "pip install 'gaguide[lora]', or leave it out"
        )


def find_adapter(model: PreTrainedModel, base: ModelSource, section: LoraSection) -> Adapter:
    """The adapters that `section` asks for on `model`, the base or its skeleton.

    Needs no peft. Raises a `UserError` for each target that matches no linear layer, and for too high a rank.
    """
    linear = linear_layers(model)
    chosen: set[str] = set()
    with FaultCollector() as faults:
        for target in section.targets:
            found = {name for name in linear if target == ALL_LINEAR or _ends_with(name, target)}
            if not found:
                known = [ALL_LINEAR, *dict.fromkeys(name.rpartition(".")[2] for name in linear)]
                problem = (
                    "matches no linear layer of the model (embeddings and the output layer have no adapter)"
                )
                faults.add(Fault(_TARGETS, problem, f"choose from {', '.join(known)}", target))
            chosen |= found
        for name in (each for each in linear if each in chosen):
            if section.rank > (smaller := min(linear[name])) and not faults:
                problem = f"must be at most {smaller}, the smaller side of {name}"
                faults.add(Fault(f"{_FIELD}.rank", problem, "give a lower rank", section.rank))
    targets = tuple(name for name in linear if name in chosen)
    return Adapter(
        base=base,
        rank=section.rank,
        alpha=section.alpha,
        dropout=section.dropout,
        targets=targets,
        named=_shortest(targets, tuple(linear)),
        transposed=all(type(model.get_submodule(name)).__name__ == "Conv1D" for name in targets),
        parameters=section.rank * sum(sum(linear[name]) for name in targets),
        quantized=tuple(linear) if section.quantize else (),
        packed=sum(rows * columns for rows, columns in linear.values()) if section.quantize else 0,
    )


def read_adapter_section(folder: Path) -> tuple[LoraSection, str, str | None]:
    """The settings in a folder's adapter_config.json, and name and revision of the base.

    Raises `OSError` or `ValueError` if there is none or it cannot be read.
    """
    from gaguide.config import LoraSection

    found = json.loads((folder / ADAPTER_CONFIG).read_text("utf-8"))
    try:
        section = LoraSection(
            rank=found["r"],
            alpha=found["lora_alpha"],
            dropout=found["lora_dropout"],
            targets=tuple(found["target_modules"]),
        )
        return section, str(found["base_model_name_or_path"]), found.get("revision")
    except (KeyError, TypeError) as error:
        raise ValueError(f"{ADAPTER_CONFIG} lacks {error}") from None


def linear_layers(model: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """Name → (inputs, outputs) of each linear layer that can have an adapter: all but the output layer."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    found = {}
    for name, module in model.named_modules():
        if module is head or not isinstance(module, nn.Linear | Conv1D):
            continue
        sides = tuple(module.weight.shape)
        found[name] = (sides[0], sides[1]) if isinstance(module, Conv1D) else (sides[1], sides[0])
    return found


def check_adapter_guides(adapter: Adapter, model: PreTrainedModel, guided: Collection[int]) -> None:
    """Raise a `UserError` where no adapter influences the attention of a layer of `guided`."""
    if not (layers := unmoved_layers(model, {f"{name}.weight" for name in adapter.targets}, guided)):
        return
    problem = f"no adapter influences the heads guided in layers {', '.join(map(str, layers))}"
    remedy = f"add targets that make their queries or keys, or {movable_from(layers, guided)}"
    raise UserError.of(_TARGETS, problem, remedy, ", ".join(adapter.named))


def _ends_with(name: str, target: str) -> bool:
    """Whether PEFT's list of target modules with `target` matches `name`."""
    return name == target or name.endswith(f".{target}")


def _shortest(targets: tuple[str, ...], linear: tuple[str, ...]) -> tuple[str, ...]:
    """`targets` by the ends of their names, as most tools expect them, unless these match others."""
    ends = tuple(dict.fromkeys(name.rpartition(".")[2] for name in targets))
    matched = tuple(name for name in linear if any(_ends_with(name, end) for end in ends))
    return ends if matched == targets else targets
