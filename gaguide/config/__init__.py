"""What a run is: its YAML (`RunConfig`), dotted overrides, and the DeepSpeed JSON it is run under."""

from gaguide.config.batch import BatchPlan, divisors, plan_batch
from gaguide.config.deepspeed import (
    Precisions,
    RunSide,
    load_deepspeed_json,
    precision,
    resolve_deepspeed,
)
from gaguide.config.load import EMBEDDED, dump_config, load_config, parse_overrides
from gaguide.config.offload import (
    SUB_GROUP_SIZE,
    needed_ops,
    nvme_folders,
    offload_device,
    sub_group_size,
)
from gaguide.config.run import (
    CheckpointSection,
    DataSection,
    EvaluateSection,
    GuidanceSection,
    ModelSection,
    RunConfig,
    SourceSection,
    TrainSection,
    ValidationSection,
)

__all__ = [
    "EMBEDDED",
    "SUB_GROUP_SIZE",
    "BatchPlan",
    "CheckpointSection",
    "DataSection",
    "EvaluateSection",
    "GuidanceSection",
    "ModelSection",
    "Precisions",
    "RunConfig",
    "RunSide",
    "SourceSection",
    "TrainSection",
    "ValidationSection",
    "divisors",
    "dump_config",
    "load_config",
    "load_deepspeed_json",
    "needed_ops",
    "nvme_folders",
    "offload_device",
    "parse_overrides",
    "plan_batch",
    "precision",
    "resolve_deepspeed",
    "sub_group_size",
]
