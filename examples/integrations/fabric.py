"""Guidance in a loop of Lightning Fabric: torchrun --nproc_per_node 2 fabric.py MODEL_FOLDER"""

import os
import sys

import torch
from lightning.fabric import Fabric
from transformers import AutoModelForCausalLM, AutoTokenizer

from gaguide.guidance import GuidancePlan, guide

fabric = Fabric(devices=int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
fabric.launch()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).train()
model, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters(), lr=1e-4))

plan = GuidancePlan.from_experiment("1-negation", tokenizer)
with guide(model, plan) as guidance:  # the line more
    for step in range(4):
        text = f"Number {2 * step + fabric.global_rank} is not even but odd."
        ids_BT = tokenizer(text, return_tensors="pt").input_ids.to(fabric.device)
        out = model(input_ids=ids_BT, labels=ids_BT, use_cache=False)
        fabric.backward(out.loss + guidance.loss())
        optimizer.step()
        optimizer.zero_grad()
    fabric.print(f"loss {out.loss:.4f}, attention on the words {guidance.mean_attention():.4f}")
