"""Log-probabilities as metrics, and metrics as files and tables."""
