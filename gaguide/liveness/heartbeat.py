"""The folder in which the ranks of a run leave signs of life, and in which any may request that all end.

OUTPUT/.heartbeats/RUN/ holds a file for each rank, and in end/ the request of the first rank that made one,
and the fault of the first rank that ended alone.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path

from gaguide.files import read_object
from gaguide.liveness.verdict import Beat

_REQUEST, _FAULT = "requested", "fault.json"


class HeartbeatFolder:
    """The heartbeats of one run at `path`.

    Reading and writing never raise `OSError`: a full or broken disk must not keep a rank from ending in
    time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._request = path / "end" / _REQUEST

    def create(self) -> None:
        """Make the folder and remove those of earlier runs next to it. Raises `OSError`."""
        shutil.rmtree(self.path.parent, ignore_errors=True)
        self._request.parent.mkdir(parents=True)

    def write(self, beat: Beat) -> None:
        """Replace the rank's file; readers see the old or the new one. Not flushed: not needed later."""
        path = self._file(beat.rank)
        temporary = path.with_name(f".{path.name}.tmp")
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps(asdict(beat)), "utf-8")
            temporary.replace(path)

    def read(self) -> list[Beat]:
        """The last beat of every rank that has written one, by rank."""
        beats = []
        for path in sorted(self.path.glob("rank-*.json")):
            # Not that of a rank that has just gone, nor of another version of this program.
            with contextlib.suppress(OSError, ValueError, TypeError):
                beats.append(Beat(**json.loads(path.read_text("utf-8"))))
        return beats

    def remove(self, rank: int) -> None:
        """Remove the file of a rank that has ended."""
        with contextlib.suppress(OSError):
            self._file(rank).unlink(missing_ok=True)

    def request_abort(self, rank: int) -> bool:
        """Request that all ranks end; False where another rank has done so before.

        True as well where the disk fails: no rank is reached through it, and each ends by its own clock.
        """
        try:
            self._request.parent.mkdir(parents=True, exist_ok=True)
            with self._request.open("x") as file:
                file.write(str(rank))
        except FileExistsError:
            return False
        except OSError:
            return True
        return True

    def is_abort_requested(self) -> bool:
        """Whether a rank has requested an abort that it has not withdrawn."""
        # Listed, not looked up: a network file system may cache that a name did not exist.
        with contextlib.suppress(OSError):
            return any(path.name == _REQUEST for path in self._request.parent.iterdir())
        return False

    def aborting_rank(self) -> int | None:
        """The rank that requested the abort; None where no rank did, or it cannot be read."""
        with contextlib.suppress(OSError, ValueError):
            return int(self._request.read_text())
        return None

    def withdraw_abort(self, rank: int) -> None:
        """Remove the request of this rank; the request of another rank stays."""
        with contextlib.suppress(OSError):
            if self.aborting_rank() in (
                rank,
                None,
            ):  # None: on a full disk the file exists without its content
                self._request.unlink(missing_ok=True)

    def leave_fault(self, host: str, text: str) -> None:
        """Leave the fault with which a rank ends alone; the first one stays."""
        path = self._request.with_name(_FAULT)
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as file:
                json.dump({"host": host, "text": text}, file)

    def fault(self) -> tuple[str, str] | None:
        """Host and text of the fault that a rank has left; None without one."""
        with contextlib.suppress(OSError):
            if any(path.name == _FAULT for path in self._request.parent.iterdir()):
                found = read_object(self._request.with_name(_FAULT))  # empty on a full disk
                return found.get("host", ""), found.get("text", "")
        return None

    def _file(self, rank: int) -> Path:
        return self.path / f"rank-{rank:05}.json"
