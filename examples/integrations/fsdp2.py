"""Guidance under plain FSDP2: torchrun --nproc_per_node 2 fsdp2.py MODEL_FOLDER"""

import sys

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, AutoTokenizer

from gaguide.guidance import GuidancePlan, guide

dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).train()
for block in model.base_model.h if hasattr(model.base_model, "h") else model.base_model.layers:
    fully_shard(block)
fully_shard(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

plan = GuidancePlan.from_experiment("1-negation", tokenizer)
with guide(model, plan) as guidance:  # the line more
    for step in range(4):
        text = f"Number {2 * step + dist.get_rank()} is not even but odd."
        ids_BT = tokenizer(text, return_tensors="pt").input_ids
        out = model(input_ids=ids_BT, labels=ids_BT, use_cache=False)
        (out.loss + guidance.loss()).backward()
        optimizer.step()
        optimizer.zero_grad()
        if dist.get_rank() == 0:
            print(f"step {step + 1}: loss {out.loss:.4f}, guidance {guidance.loss():.4f}")
dist.destroy_process_group()
