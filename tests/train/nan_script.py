"""launch/train.py with a broken model: the loss of one rank is NaN at the micro batches that NAN_AT names."""

import os

import torch
from transformers import GPT2LMHeadModel

from gaguide.distributed import leave
from gaguide.train.command import main

calls = 0
spoiled = {int(text) for text in os.environ["NAN_AT"].split(",")}
forward = GPT2LMHeadModel.forward


def spoiling_forward(self, *arguments, **keywords):
    global calls
    output = forward(self, *arguments, **keywords)
    if self.training and torch.is_grad_enabled():
        calls += 1
        if calls in spoiled and os.environ["RANK"] == os.environ["NAN_RANK"]:
            output.loss = output.loss * float("nan")
    return output


GPT2LMHeadModel.forward = spoiling_forward
leave(main())
