"""The format of a folder of shards: manifest, shard files, tokenizer, and pieces of an unfinished build."""
