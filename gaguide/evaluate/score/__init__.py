"""Batches through a model: log-probabilities of the scored tokens."""
