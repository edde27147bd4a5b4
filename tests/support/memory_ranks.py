"""Ranks that evaluate one model under DDP; `memory_ranks.py MODEL OUTPUT`."""

from __future__ import annotations

import sys

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, AutoTokenizer

from gaguide.distributed import all_gather
from gaguide.errors import UserError
from gaguide.evaluate import evaluate_model

folder, output = sys.argv[1:]
dist.init_process_group("gloo")
model = DistributedDataParallel(AutoModelForCausalLM.from_pretrained(folder)).train()
tokenizer = AutoTokenizer.from_pretrained(folder)
results = evaluate_model(model, tokenizer, "synthetic-order", output=output)
assert results.world_size == 2 and model.module.training
assert len(set(all_gather(repr(results.to_json()["tasks"])))) == 1
try:  # a mistake of one rank is every rank's error: none waits for the others
    evaluate_model(model, tokenizer if dist.get_rank() else None, "synthetic-order")  # type: ignore[arg-type]
except UserError as error:
    assert "rank 0: tokenizer" in str(error), error
else:
    raise AssertionError("the mistake was accepted")
dist.destroy_process_group()
