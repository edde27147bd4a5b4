"""Whether guided heads are used: what a model loses without them, compared with heads that are not guided.

subjects → text, tasks (measured) → effects (tested) → verdict → records (ablation.json)
"""
