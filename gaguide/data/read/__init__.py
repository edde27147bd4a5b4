"""From shards to blocks in training order: local folders, remote addresses and builds in progress."""
