"""Build shards in a separate process while training reads them.

The process ends with its parent, for whatever reason: it holds the other end of a pipe. If another process
builds the same folder already, it waits for that one and takes over if it ends early.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

from gaguide.data.build.build import build_shards
from gaguide.data.build.request import BuildRequest
from gaguide.data.format.manifest import BUILD_FOLDER, is_complete
from gaguide.data.format.pieces import FAILURE_FILE
from gaguide.errors import FaultKind, UserError, mask_credentials
from gaguide.files import write_text

_RETRY_SECONDS = 2.0


class BackgroundBuild:
    """A running build of `request`. A failure is written next to its pieces, where every host can read it."""

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
        """End the build now; its complete pieces are kept."""
        self._stopped = True
        self._process.kill()
        self._process.wait()

    def _watch(self) -> None:
        code = self._process.wait()
        if code and not self._stopped and not self._failure.exists():
            self._failure.parent.mkdir(exist_ok=True)
            write_text(self._failure, f"its process ended with exit code {code}")


def main() -> None:
    """Build the request that is pickled on standard input, which stays open while the parent lives."""
    request: BuildRequest = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while not is_complete(request.output):
        try:
            build_shards(request)
        except UserError as error:
            if any(fault.kind == FaultKind.BUSY for fault in error.faults):
                time.sleep(_RETRY_SECONDS)
                continue
            _write_failure(
                request.output, "; ".join(f"{fault.field}: {fault.problem}" for fault in error.faults)
            )
            sys.exit(1)
        except Exception as error:
            _write_failure(request.output, f"{type(error).__name__}: {error}")
            raise


def _write_failure(output: Path, text: str) -> None:
    (output / BUILD_FOLDER).mkdir(exist_ok=True)
    write_text(output / BUILD_FOLDER / FAILURE_FILE, mask_credentials(text))


def _end_with_parent() -> None:
    # Not by sys.stdin: a thread that waits in its buffer makes the interpreter abort at its end.
    while os.read(0, 1):
        pass
    os._exit(1)
