"""Examples as tokens, by the rules of lm-evaluation-harness.

encoder.py     one (prompt, continuation) → `EncodedPair`
examples.py    all examples of all tasks
chat.py        prompts by a model's chat template
near_cue.py    held-out text by distance after cues
span_marks.py  spans of the data as marks of tokens
overflow.py    problems of examples that encoding reveals
identity.py    which models encode alike
"""
