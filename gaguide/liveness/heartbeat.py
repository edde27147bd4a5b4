"""What each rank last said of itself, and who is to blame when nobody gets on. Pure apart from its files.

A run's folder in OUTPUT/.heartbeats/ holds a file of each rank, and in end/ the call of the first rank that
ends the job.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

_END, _CALL = "end", "called"


@dataclass(frozen=True)
class Beat:
    """A rank's sign of life.

    time: Unix seconds when it was given; step, doing: where its training stands, and for how many `seconds`;
    place: the line of code it is in; waiting: whether that is a wait for other ranks.
    """

    rank: int
    host: str
    time: float
    step: int
    doing: str
    seconds: float
    place: str
    waiting: bool


def write_beat(folder: Path, beat: Beat) -> None:
    """Replace the rank's file; a reader sees the old one or the new one."""
    path = folder / f"rank-{beat.rank:05}.json"
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(asdict(beat)), "utf-8")
    temporary.replace(path)


def read_beats(folder: Path) -> list[Beat]:
    """The last beat of every rank that has given one, by rank."""
    beats = []
    for path in sorted(folder.glob("rank-*.json")):
        try:
            beats.append(Beat(**json.loads(path.read_text("utf-8"))))
        except (OSError, ValueError, TypeError):  # of a rank that is gone, or of another version
            continue
    return beats


def begin_beats(folder: Path) -> None:
    """Make a run's folder, and remove those of earlier runs beside it."""
    shutil.rmtree(folder.parent, ignore_errors=True)
    (folder / _END).mkdir(parents=True)


def call_end(folder: Path, rank: int) -> bool:
    """Call all ranks to end; False where another has done so before."""
    call = folder / _END / _CALL
    try:
        call.parent.mkdir(parents=True, exist_ok=True)
        with call.open("x") as file:
            file.write(str(rank))
    except FileExistsError:
        return False
    except OSError:  # nobody is reached by way of this disk: each rank ends by its own clock
        return True
    return True


def end_called(folder: Path) -> bool:
    """Whether a rank has called; a network file system looks afresh when a folder is listed."""
    with contextlib.suppress(OSError):
        return any(path.name == _CALL for path in (folder / _END).iterdir())
    return False


def caller(folder: Path) -> int | None:
    """The rank that called."""
    with contextlib.suppress(OSError, ValueError):
        return int((folder / _END / _CALL).read_text())
    return None


def withdraw_call(folder: Path, rank: int) -> None:
    """This rank, which called, goes on after all; the call of another stands."""
    with contextlib.suppress(OSError):
        if caller(folder) in (rank, None):  # None: a full disk took the file, not what is in it
            (folder / _END / _CALL).unlink(missing_ok=True)


def verdict(beats: Sequence[Beat], world_size: int, now: float, silent_after: float) -> str:
    """Which ranks hold the others up, and where they are, in one sentence."""
    silent = [beat for beat in beats if now - beat.time > silent_after]
    missing = sorted(set(range(world_size)) - {beat.rank for beat in beats})
    if silent or missing:
        told = [
            f"{_name(beat)} has given no sign of life for {now - beat.time:.0f} s (stopped, killed, or its "
            f"host or link is down); it was at step {beat.step}, {beat.doing}"
            for beat in silent
        ]
        told += [f"rank {rank} never gave a sign of life" for rank in missing]
        return "; ".join(told)
    busy = [beat for beat in beats if not beat.waiting]
    if len(busy) == len(beats):  # nobody is seen to wait, as on GPUs: who is behind?
        first = min(beat.step for beat in beats)
        busy = [beat for beat in beats if beat.step == first]
    if busy and (len(busy) < len(beats) or world_size == 1):
        longest = max(beat.seconds for beat in busy)
        busy = [beat for beat in busy if 2 * beat.seconds >= longest]  # others are ahead, and compute
        return "; ".join(
            f"{_name(beat)} hangs at step {beat.step}, {beat.doing}, since {beat.seconds:.0f} s "
            f"in {beat.place}"
            for beat in busy
        )
    places = sorted({f"{beat.doing} in {beat.place}" for beat in beats})
    step = min(beat.step for beat in beats)
    remark = "a broken connection between hosts?"
    return f"all {len(beats)} ranks wait at step {step} ({'; '.join(places)}): {remark}"


def _name(beat: Beat) -> str:
    return f"rank {beat.rank} on host {beat.host}"
