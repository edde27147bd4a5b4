"""gaguide: attention-guided fine-tuning of causal language models at scale."""

__version__ = "0.2.0.dev0"
