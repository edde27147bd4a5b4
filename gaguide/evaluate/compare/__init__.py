"""Two or more evaluations compared on the same examples; without torch.

metric_tests.py      one task of two evaluations: examples matched, every metric tested; studies use it too
harness_samples.py   lm-evaluation-harness's samples files → examples
sources.py           a path → the evaluation in it
records.py           what a comparison consists of
comparison.py        several evaluations: tests, corrected; power; examples gained and lost
"""
