"""Token sequences as rows, rows as batches, batches as shares of the ranks; pure."""
