"""launch/train.py with a rank that hangs in the middle of a step: HANG_RANK at step HANG_STEP.

HANG_OTHERS: "patient" makes the other ranks' timeout so long that only the hanging rank's request ends
them; "deaf" also hides that request from their monitor thread, so that all they see is a broken connection.
"""

import os
import threading
import time

import gaguide.train.run
from gaguide.distributed import leave
from gaguide.liveness.heartbeat import HeartbeatFolder
from gaguide.liveness.watchdog import Watchdog
from gaguide.train.command import main
from gaguide.train.inputs import InputReader

read = InputReader.take
calls = 0


def stuck_file_system(*arguments, **keywords):
    global calls
    calls += 1
    if os.environ["RANK"] == os.environ["HANG_RANK"] and calls == int(os.environ["HANG_STEP"]):
        time.sleep(10_000)
    return read(*arguments, **keywords)


class PatientWatchdog(Watchdog):
    def mark(self, step, doing, patience=1.0):
        super().mark(step, doing, 1000 * patience)


class DeafFolder(HeartbeatFolder):
    def is_abort_requested(self):
        return threading.current_thread() is threading.main_thread() and super().is_abort_requested()


class DeafWatchdog(PatientWatchdog):
    def __init__(self, output, beats, *rest):
        super().__init__(output, DeafFolder(beats.path), *rest)


InputReader.take = stuck_file_system
kinds = {"patient": PatientWatchdog, "deaf": DeafWatchdog}
if os.environ["RANK"] != os.environ["HANG_RANK"] and os.environ.get("HANG_OTHERS") in kinds:
    gaguide.train.run.Watchdog = kinds[os.environ["HANG_OTHERS"]]
leave(main())
