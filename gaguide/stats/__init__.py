"""Statistics of paired comparisons, the same for evaluations, runs and studies; numbers in, records out.

difference.py  the record of a comparison
groups.py      sums over groups of examples, and the error of their ratio
paired.py      McNemar, paired bootstrap, paired t-test, Holm's correction
power.py       effect sizes, power, the smallest detectable difference
"""
