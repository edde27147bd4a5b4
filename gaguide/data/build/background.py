"""Building shards in a process beside the training that reads them.

The process ends with its parent, however that ends: it holds the other end of a pipe. A build that another
process does already is waited for, and taken over should that process end.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

from gaguide.data.build.build import BUILD_FOLDER, BuildRequest, build_shards
from gaguide.data.format.manifest import is_complete
from gaguide.errors import UserError
from gaguide.files import write_text

FAILURE_FILE = "failed.txt"
_AGAIN_SECONDS = 2.0


class BackgroundBuild:
    """A running build of `request`; what goes wrong is written beside its pieces, for all hosts to see."""

    def __init__(self, request: BuildRequest) -> None:
        self._failure = request.output / BUILD_FOLDER / FAILURE_FILE
        self._failure.unlink(missing_ok=True)
        command = [sys.executable, "-c", "from gaguide.data.build.background import main; main()"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE)
        assert self._process.stdin is not None
        self._process.stdin.write(pickle.dumps(request))
        self._process.stdin.flush()
        self._stopped = False
        threading.Thread(target=self._watch, daemon=True, name="gaguide-build-watch").start()

    def stop(self) -> None:
        """End it now; what it has made whole stays."""
        self._stopped = True
        self._process.kill()
        self._process.wait()

    def _watch(self) -> None:
        code = self._process.wait()
        if code and not self._stopped and not self._failure.exists():
            self._failure.parent.mkdir(exist_ok=True)
            write_text(self._failure, f"its process ended with code {code}")


def main() -> None:
    """The process: a pickled request on standard input, which stays open for as long as the parent lives."""
    request: BuildRequest = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while not is_complete(request.output):
        try:
            build_shards(request)
        except UserError as error:
            if any("another build is writing" in fault.problem for fault in error.faults):
                time.sleep(_AGAIN_SECONDS)
                continue
            _tell(request.output, "; ".join(f"{fault.field}: {fault.problem}" for fault in error.faults))
            sys.exit(1)
        except Exception as error:
            _tell(request.output, f"{type(error).__name__}: {error}")
            raise


def _tell(output: Path, text: str) -> None:
    (output / BUILD_FOLDER).mkdir(exist_ok=True)
    write_text(output / BUILD_FOLDER / FAILURE_FILE, text)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()  # returns when the parent has ended
    os._exit(1)
