"""gaguide: attention-guided fine-tuning of causal language models at scale."""

__version__ = "0.1.0"
