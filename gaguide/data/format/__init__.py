"""What a folder of shards is: its manifest, shard files, tokenizer, and the pieces of an unfinished build."""
