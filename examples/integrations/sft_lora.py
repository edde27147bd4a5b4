"""Guided LoRA with TRL's SFTTrainer and PEFT: python sft_lora.py MODEL_FOLDER OUTPUT

The adapters of q, k and v learn to guide; the model's own weights stay. OUTPUT holds the adapter.
"""

import sys

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from gaguide.guidance import GuidancePlan
from gaguide.integrations.transformers import guided

model_folder, output = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(model_folder)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token

pairs = [(f"Is {n} not even?", " yes" if n % 2 else " no") for n in range(64)]
rows = Dataset.from_list([{"prompt": prompt, "completion": answer} for prompt, answer in pairs])

trainer = guided(SFTTrainer)(  # instead of: SFTTrainer(
    guidance=GuidancePlan.from_experiment("1-negation", tokenizer),  # the line more
    model=model_folder,
    args=SFTConfig(
        output,
        max_steps=4,
        logging_steps=1,
        max_length=64,
        report_to="none",
        bf16=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
    ),
    train_dataset=rows,
    processing_class=tokenizer,
    peft_config=LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4),
)
trainer.train()
trainer.save_model()
