"""Log-probabilities as metrics, and metrics as files and tables.

metric_names.py   properties of metrics by name; imports nothing
numbers.py        the number in a generated text
metrics.py        log-probabilities → outcomes of examples → metrics
intervals.py      means, shares and rates with intervals, over examples or groups
outcomes.py       examples.parquet → one number per example and metric; without torch
paper.py          the paper's models and accuracies
results.py        `TaskResult`, `Results` and results.json
task_results.py   scores of all examples → `TaskResult`
harness.py        results in the form of lm-evaluation-harness
write.py          the files of an evaluation
table.py          what a person sees
"""
