"""Records of a run: metrics.jsonl and the step line on the console."""

from gaguide.log.console import StepLine, heard, say
from gaguide.log.records import MetricsFile, read_metrics, write_bytes, write_json, write_text

__all__ = [
    "MetricsFile",
    "StepLine",
    "heard",
    "read_metrics",
    "say",
    "write_bytes",
    "write_json",
    "write_text",
]
