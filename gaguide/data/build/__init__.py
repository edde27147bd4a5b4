"""From text to shards: sources, parallel tokenization, resumable builds."""
