"""A lone rank of two under a watchdog, which requests an abort: watchdog_script.py OUTPUT TIMEOUT WHAT.

WHAT is "resumes-and-fails": it moves again and then raises an error of its own; or "disconnected": the
other rank is gone before this one has waited for it to see the request.
"""

import sys
from pathlib import Path

from gaguide.distributed import World
from gaguide.liveness.heartbeat import HeartbeatFolder
from gaguide.liveness.watchdog import Watchdog
from tests.support.patience import wait_until

output, timeout, what = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
beats = HeartbeatFolder(output / "beats")
watchdog = Watchdog(output, beats, World(0, 2, 0, "n0"), timeout, print)
watchdog.hang.notice_seconds = 300.0  # the launcher gives a rank half a minute
with watchdog:
    watchdog.training_has_begun()
    watchdog.mark(1, "waiting")
    wait_until(beats.is_abort_requested)
    if what == "disconnected":
        raise RuntimeError("Connection closed by peer")
    watchdog.mark(2, "moving again")
    raise ValueError("an error of its own")
