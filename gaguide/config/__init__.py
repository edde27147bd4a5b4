"""Settings of a run: its YAML (`RunConfig`), dotted overrides, and the DeepSpeed JSON that it runs with."""

from gaguide.config.batch import BatchPlan, divisors, plan_batch
from gaguide.config.data import DataSection, SourceSection
from gaguide.config.load import EMBEDDED, dump_config, load_config
from gaguide.config.run import (
    CheckpointSection,
    EvaluateSection,
    GuidanceSection,
    LoraSection,
    ModelSection,
    RunConfig,
    TrainSection,
    ValidationSection,
)
from gaguide.config.yaml_tree import parse_overrides

__all__ = [
    "EMBEDDED",
    "BatchPlan",
    "CheckpointSection",
    "DataSection",
    "EvaluateSection",
    "GuidanceSection",
    "LoraSection",
    "ModelSection",
    "RunConfig",
    "SourceSection",
    "TrainSection",
    "ValidationSection",
    "divisors",
    "dump_config",
    "load_config",
    "parse_overrides",
    "plan_batch",
]
