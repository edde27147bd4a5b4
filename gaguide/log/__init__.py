"""Records of a run: metrics.jsonl, the step line on the console, and which code made them."""

from gaguide.log.code import code_commit, code_fingerprint
from gaguide.log.console import (
    SlowWork,
    StepLine,
    escape_control_characters,
    format_duration,
    has_reader,
    is_first_process,
    print_any_text,
    say,
    table_console,
)
from gaguide.log.records import MetricsFile, has_step, read_lines, read_metrics

__all__ = [
    "MetricsFile",
    "SlowWork",
    "StepLine",
    "code_commit",
    "code_fingerprint",
    "escape_control_characters",
    "format_duration",
    "has_reader",
    "has_step",
    "is_first_process",
    "print_any_text",
    "read_lines",
    "read_metrics",
    "say",
    "table_console",
]
