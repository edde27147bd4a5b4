"""Batches through a model: log-probabilities of the scored tokens.

logits.py        rows → model inputs; hidden states → scores
causal.py        attention without a mask before a row's first branch
prefix_cache.py  keys and values of a prefix, computed once for many batches
generate.py      greedy continuations
rearrange.py     the same sequences in other rows
scorer.py        scores of one batch, in the ways that the model supports
saved_scores.py  scores on disk, so that an interrupted evaluation resumes
progress.py      progress on the console
ranks.py         all batches, shared among the ranks
"""
