"""Whether a run can train in the attention that `model.attention` names."""

from __future__ import annotations

from gaguide.config import RunConfig
from gaguide.errors import Fault
from gaguide.model import ModelSource
from gaguide.model.shape import ATTENTION_DROPOUT_FIELDS


def attention_faults(run: RunConfig, model: ModelSource | None, precision: str, on_gpu: bool) -> list[Fault]:
    """Faults of `model.attention`; empty where the run can train. `model` is None where it was not found."""
    name = run.model.attention
    if name == "sdpa":
        return []
    found = []
    if name.startswith("flash") and not (on_gpu and precision != "fp32"):
        found.append(("flash attention needs a GPU and 16 bits", "use sdpa, or enable bf16 on a GPU"))
    if name == "flex_attention" and not on_gpu:
        found.append(("torch has no gradient of flex attention on a CPU", "use sdpa or eager"))
    if name == "flex_attention" and model is not None and _drops_attention(model):
        found.append(("flex attention has no dropout", "use sdpa, or set model.dropout: 0"))
    if run.data.isolate_documents:
        problem = "documents are isolated in sdpa only, which uses variable-length flash attention on a GPU"
        found.append((problem, "use sdpa, or set data.isolate_documents: false"))
    if run.train.compile:
        found.append(("train.compile compiles sdpa only", "use sdpa, or set train.compile: false"))
    if run.evaluate.every and name != "eager":
        problem = "evaluation during training needs masks that this attention does not accept"
        found.append((problem, "use sdpa, or evaluate the exported model"))
    return [Fault("model.attention", problem, remedy, name) for problem, remedy in found]


def _drops_attention(model: ModelSource) -> bool:
    text = model.config.get_text_config()
    return any(getattr(text, name, 0.0) for name in ATTENTION_DROPOUT_FIELDS)
