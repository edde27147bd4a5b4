"""Task files of lm-evaluation-harness 0.4.13: what they say, and what of it is refused.

source.py      YAML with `include` and `!function` → a tree of keys and values
config.py      tree → `HarnessTask`; what is not supported is refused with the reason and the nearest way

The package does not import the harness, which need not be installed.
"""
