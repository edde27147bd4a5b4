"""Which heads to guide: each head's attention, its effect on the loss, and plans chosen by rule.

behaviour, attribution, exact knock-outs → records → rules (plan.yaml)
"""
