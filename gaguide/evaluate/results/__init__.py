"""Log-probabilities as metrics, and metrics as files and tables.

From scores to results:

metrics.py          log-probabilities → outcomes of examples → metrics
agreement.py        metrics of agreement beyond accuracy: balanced accuracy, MCC, Brier, calibration
answers.py          which answers were chosen; answers that say nothing, such as one for all examples
parts.py            results of a task's parts
numbers.py          the number in a generated text
intervals.py        means, shares and rates with intervals, over examples or groups
near_ties.py        predictions that rounding decides
metric_names.py     properties of metrics by name; imports nothing
task_results.py     `TaskResult`, made from the scores of all examples
results.py          `Results` and results.json

As lm-evaluation-harness gives them: harness_items.py (contributions of examples), harness_metrics.py (of
tasks), groups.py (of groups), harness.py (its results file), samples.py (its samples files).

Files and tables, without torch:

earlier.py          results that a folder holds already, merged with new ones
write.py            the files of an evaluation
markdown.py         results.json as a Markdown table
table.py            the table on the console
outcomes.py         examples.parquet → one number per example and metric
golden.py           a known model's results against published figures
paper.py            the paper's models and accuracies
seen.py             results of examples in the training text, and of the others
"""
