"""Guidance in a loop of Accelerate: accelerate launch accelerate_loop.py MODEL_FOLDER"""

import sys

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

from gaguide.guidance import GuidancePlan, guide

accelerator = Accelerator(gradient_accumulation_steps=2)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).train()
texts = [f"Number {n} is not even but odd." for n in range(10, 42, 2)]
loader = DataLoader(tokenizer(texts)["input_ids"], batch_size=1, collate_fn=torch.tensor)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

plan = GuidancePlan.from_experiment("1-negation", tokenizer)
with guide(model, plan) as guidance:  # the line more
    for ids_BT in loader:
        with accelerator.accumulate(model):
            out = model(input_ids=ids_BT, labels=ids_BT, use_cache=False)
            accelerator.backward(out.loss + guidance.loss())
            optimizer.step()
            optimizer.zero_grad()
    accelerator.print(f"loss {out.loss:.4f}, attention on the words {guidance.mean_attention():.4f}")
