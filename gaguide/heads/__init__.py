"""Which heads to guide: what each head of a model attends to, what it is good for, and plans chosen by rule.

behaviour, attribution, exact knock-outs → records → rules (plan.yaml)
"""
