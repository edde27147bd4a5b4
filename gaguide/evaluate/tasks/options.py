"""How tasks are read, beyond their names: demonstrations, prompts, and code that may run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TaskOptions:
    """Settings of an evaluation that change what is asked."""

    include_path: tuple[Path, ...] = ()
    """Folders whose task files of lm-evaluation-harness can be named by task, group or tag."""
    trust_remote_code: bool = False
    """Whether Python functions that such files name may run."""
    fewshot_seed: int = 1234
    """Seed of the harness's draw of demonstrations."""
    apply_chat_template: bool = False
    """Whether prompts are rendered with each model's chat template."""
    system_instruction: str = ""
    """Text before a task's description."""
    fewshot_as_multiturn: bool = True
    """With a chat template: whether each demonstration is a turn of its own."""
    log_samples: bool = False
    """Whether every continuation is compared with greedy decoding, as in the harness's samples."""


DEFAULTS = TaskOptions()
