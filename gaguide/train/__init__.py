"""Training: from a run's settings to a trained, exported model. The command is in `gaguide.train.command`."""
