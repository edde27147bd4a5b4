"""Examples as tokens, by the rules of lm-evaluation-harness."""
