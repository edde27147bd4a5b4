"""Task files of lm-evaluation-harness 0.4.13, and which parts of them are refused.

source.py      YAML with `include` and `!function` → a tree of keys and values
config.py      tree → `HarnessTask`; what is not supported is refused with the reason and the nearest way
registry.py    tasks, groups and tags by name; groups.py: what a group computes
documents.py   the splits of the data set
fields.py      doc_to_* of one document: columns, Jinja, constants
sampler.py     which documents are demonstrations
prompts.py     a document and its demonstrations as messages
examples.py    document → `Example`
read.py        all of the above for one task

The package does not import the harness, which need not be installed.
"""
