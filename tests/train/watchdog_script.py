"""A rank under a watchdog, without a collective: watchdog_script.py OUTPUT RANK SIZE WHAT.

"late" calls, and goes on; its file system is slow meanwhile. "busy" has nothing to wait for, and ends when
the call has been withdrawn. "late-fails" goes on, too, to an error of its own. "broken" calls, and is left by
the others before anyone has had to hear of it.
"""

import sys
import time
from pathlib import Path

from gaguide.distributed import World
from gaguide.liveness.heartbeat import end_called
from gaguide.liveness.watchdog import Watchdog


class SlowWatchdog(Watchdog):
    def _write_stacks(self):
        time.sleep(1.5)
        return super()._write_stacks()


output, rank, size, what = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
world = World(rank, 2, rank, f"n{rank}")
kind = SlowWatchdog if what == "late" else Watchdog
watchdog = kind(output, output / "beats", world, 3.0, print)
if what == "broken":
    watchdog._hearing = 300.0


def until(called: bool) -> None:
    """Until a call stands, or none does; marked as going on where this rank is busy."""
    while end_called(watchdog.beats) != called:
        if what == "busy":
            watchdog.mark(1, "computing")
        time.sleep(0.02)


(output / f"ready-{rank}").touch()
while len(list(output.glob("ready-*"))) < size:  # imports may take one rank seconds longer
    time.sleep(0.02)
with watchdog:
    watchdog.mark(1, "waiting")
    until(True)
    if what in ("late", "late-fails"):
        watchdog.mark(2, "going on")
    if what == "late-fails":
        raise ValueError("an error of its own")
    if what == "broken":
        raise RuntimeError("Connection closed by peer")
    until(False)
    watchdog.mark(3, "computing")
    time.sleep(2.0)
print("went on")
