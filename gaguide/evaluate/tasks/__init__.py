"""Tasks: from task files and their data to examples; every fault is found before a model loads.

task.py       task files, and the tasks that ship with the package
locate.py     the names after --tasks → task files and data files
files.py      the data files of a task → examples
records.py    JSON Lines, CSV and TSV → rows
template.py   rows in other columns → rows in ours
values.py     values in columns
examples.py   rows → examples; example.py: one of them
fewshot.py    which examples are demonstrations
prompts.py    description, demonstrations and question → prompts; conversation.py: prompts as messages
harness/      task files of lm-evaluation-harness
options.py    settings that change what is asked
heldout.py    blocks of shards as examples; near_cue.py: split by distance after cues
synthetic.py  generated sets
read.py       all of the above → `TaskData`; texts.py: their texts, to look for in training text

balanced_negation.py  questions about negation that no shortcut answers; antonyms.py gives the words
controls.py           a task's prompts with their negations removed, replaced or reworded
"""
