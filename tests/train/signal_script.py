"""launch/train.py that gets a signal while it does something: SIGNAL_IN is `validate:1`, `train_step:2` …

The signal is SIGTERM, or the one that SIGNAL names."""

import os
import signal

import gaguide.train.run
import gaguide.train.trainer
from gaguide.distributed import leave
from gaguide.train.__main__ import make_evaluation
from gaguide.train.command import main

name, _, number = os.environ["SIGNAL_IN"].partition(":")
module = gaguide.train.trainer if hasattr(gaguide.train.trainer, name) else gaguide.train.run
function = getattr(module, name)
calls = 0


def interrupted(*arguments, **keywords):
    global calls
    calls += 1
    if calls == int(number):
        os.kill(os.getpid(), signal.Signals[os.environ.get("SIGNAL", "SIGTERM")])
    return function(*arguments, **keywords)


setattr(module, name, interrupted)
leave(main(make_evaluation=make_evaluation))
