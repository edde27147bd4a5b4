"""gaguide: attention-guided fine-tuning of causal language models at scale."""

from gaguide.home import ensure_home_here

__version__ = "0.2.0.dev0"

ensure_home_here()  # before torch and transformers are imported, which look for it
