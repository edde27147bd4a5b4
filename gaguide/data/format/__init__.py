"""What a folder of shards is: manifest, shard files, tokenizer, token text."""
