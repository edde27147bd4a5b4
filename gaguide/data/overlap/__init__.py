"""Overlap of evaluation examples with training text: exact runs of 13 words, and of 8 tokens."""
