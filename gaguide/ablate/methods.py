"""Names of the ways of removing a head; imports nothing."""

METHODS = ("mean", "zero", "resample", "edges")
"""The head's output replaced by its mean over the text, by zero or by another block's; or its attention on
its pattern's targets removed and the rest renormalised."""
TASK_METHODS = ("mean", "zero", "edges")
"""Those that apply to tasks, whose rows have no other block."""
