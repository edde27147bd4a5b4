"""launch/train.py with a rank that stops in the middle of a step: HANG_RANK at step HANG_STEP."""

import os
import sys
import time

import gaguide.train.run
from gaguide.train.command import main

read = gaguide.train.run.model_inputs
calls = 0


def stuck_file_system(*arguments, **keywords):
    global calls
    calls += 1
    if os.environ["RANK"] == os.environ["HANG_RANK"] and calls == int(os.environ["HANG_STEP"]):
        time.sleep(10_000)
    return read(*arguments, **keywords)


gaguide.train.run.model_inputs = stuck_file_system
sys.exit(main())
