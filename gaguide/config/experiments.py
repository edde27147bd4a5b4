"""The paper's experiments. Apart from the guidance plan, so that reading a study does not import torch."""

EXPERIMENTS: dict[str, tuple[str, ...]] = {
    "finetuned": (),
    "1-negation": ("contrast",),
    "3-negation": ("contrast", "contrast", "contrast"),
    "4-transition": ("order", "contrast", "addition", "emphasis"),
}
"""Experiment → the lexicons of heads 0, 1, … in every layer; `finetuned` guides no head."""
