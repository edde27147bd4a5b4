"""launch/train.py with a rank that stops in the middle of a step: HANG_RANK at step HANG_STEP.

HANG_OTHERS: "patient" gives the other ranks' clocks so much time that they must be called; "deaf" lets them
not even look for a call, so that they see no more than a broken connection.
"""

import os
import threading
import time

import gaguide.liveness.watchdog
import gaguide.train.run
import gaguide.train.trainer
from gaguide.distributed import leave
from gaguide.train.command import main

read = gaguide.train.trainer.model_inputs
calls = 0


def stuck_file_system(*arguments, **keywords):
    global calls
    calls += 1
    if os.environ["RANK"] == os.environ["HANG_RANK"] and calls == int(os.environ["HANG_STEP"]):
        time.sleep(10_000)
    return read(*arguments, **keywords)


class PatientWatchdog(gaguide.liveness.watchdog.Watchdog):
    def mark(self, step, doing, patience=1.0):
        super().mark(step, doing, 1000 * patience)


class DeafWatchdog(PatientWatchdog):
    def _called(self):
        return threading.current_thread() is threading.main_thread() and super()._called()


gaguide.train.trainer.model_inputs = stuck_file_system
kinds = {"patient": PatientWatchdog, "deaf": DeafWatchdog}
if os.environ["RANK"] != os.environ["HANG_RANK"] and os.environ.get("HANG_OTHERS") in kinds:
    gaguide.train.run.Watchdog = kinds[os.environ["HANG_OTHERS"]]
leave(main())
