"""Corpora that are tokenised already: other programs' formats as sources of shards, and shards in these."""
