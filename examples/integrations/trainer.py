"""Guidance in transformers' Trainer: python trainer.py MODEL_FOLDER OUTPUT

Under several ranks: torchrun --nproc_per_node 2 trainer.py MODEL_FOLDER OUTPUT
"""

import sys

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

from gaguide.guidance import GuidancePlan
from gaguide.integrations.transformers import guided

model_folder, output = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(model_folder)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
model = AutoModelForCausalLM.from_pretrained(model_folder)

texts = [f"Number {n} is not even but odd." if n % 2 else f"Number {n} is even, not odd." for n in range(64)]
rows = Dataset.from_dict({"text": texts}).map(lambda row: tokenizer(row["text"]), remove_columns="text")
rows = rows.train_test_split(8, seed=0)

trainer = guided(Trainer)(  # instead of: Trainer(
    guidance=GuidancePlan.from_experiment("1-negation", tokenizer),  # the line more
    model=model,
    args=TrainingArguments(
        output,
        max_steps=4,
        gradient_accumulation_steps=2,
        logging_steps=1,
        eval_strategy="epoch",
        report_to="none",
    ),
    train_dataset=rows["train"],
    eval_dataset=rows["test"],
    data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
)
trainer.train()
print(trainer.evaluate())
trainer.save_model()
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()  # else a rank may die of gloo's threads while Python ends
