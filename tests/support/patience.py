"""Time limits that fit the machine: no test may fail because its machine is slow or busy.

Limits in tests are written for an idle two-core machine and pass through `patience`, which stretches them by
a factor measured once a session. The environment variable GAGUIDE_TEST_SLOWNESS replaces the measurement.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

VARIABLE = "GAGUIDE_TEST_SLOWNESS"
REFERENCE_SECONDS = 1.5
"""Seconds of `import torch` in a fresh process on an idle two-core machine."""


def measure_slowness() -> None:
    """Time one `import torch` and leave the factor in the environment, unless it holds one already.

    Called at session start; test processes and the scripts that tests start inherit the variable.
    """
    if VARIABLE not in os.environ:
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", "import torch"], check=True)
        os.environ[VARIABLE] = f"{max(1.0, (time.monotonic() - began) / REFERENCE_SECONDS):.2f}"


def patience(seconds: float) -> float:
    """`seconds` of an idle two-core machine, as seconds of this one."""
    return seconds * float(os.environ.get(VARIABLE, "1"))


def wait_until(
    condition: Callable[[], object], seconds: float = 60, failure: Callable[[], object] = lambda: ""
) -> float:
    """Poll until `condition()` is true; returns the seconds waited.

    Raises `AssertionError` with the text of `failure()` after `patience(seconds)`.
    """
    began = time.monotonic()
    while not condition():
        waited = time.monotonic() - began
        assert waited < patience(seconds), f"nothing after {waited:.0f} s {failure()}"
        time.sleep(0.02)
    return time.monotonic() - began
