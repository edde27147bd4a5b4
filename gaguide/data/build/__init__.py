"""Text → shards: sources, parallel tokenising, resumable builds."""
