"""Statistics of paired comparisons, the same for evaluations, runs and studies; numbers in, records out.

paired.py   McNemar, paired bootstrap, paired t-test, Holm's correction
"""
