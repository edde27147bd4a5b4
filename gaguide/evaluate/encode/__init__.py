"""Examples as tokens, by the rules of lm-evaluation-harness.

encoder.py    one (prompt, continuation) → `EncodedPair`
examples.py   all examples of all tasks
identity.py   which models encode alike
"""
