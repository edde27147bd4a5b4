"""Shards → blocks in training order, from local folders, remote addresses and growing builds."""
