"""launch/train.py with a memory limit: rank 1 cannot allocate any more from its fourth micro batch on."""

import os
import resource

import psutil
from transformers import GPT2LMHeadModel

from gaguide.distributed import leave
from gaguide.train.command import main

calls = 0
forward = GPT2LMHeadModel.forward


def limited_forward(self, *arguments, **keywords):
    global calls
    calls += self.training
    if calls == 4 and os.environ["RANK"] == "1":
        resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms, resource.RLIM_INFINITY))
    return forward(self, *arguments, **keywords)


GPT2LMHeadModel.forward = limited_forward
leave(main())
