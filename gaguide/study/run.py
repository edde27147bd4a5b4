"""Run a study on this machine: cells side by side, each a process of its own, finished ones skipped.

A cell that fails leaves its log's last lines in its state and stops no other; what starts from it is blocked.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from filelock import Timeout

from gaguide.config import dump_config
from gaguide.files import write_text
from gaguide.log import say
from gaguide.ports import free_port
from gaguide.study.commands import RUN_FILE, evaluate_command, train_command
from gaguide.study.grid import Cell, Grid
from gaguide.study.records import State
from gaguide.study.state import (
    CellState,
    cell_lock,
    is_complete,
    is_evaluated,
    is_trained,
    read_state,
    stored_state,
    write_state,
)

_TAIL_LINES = 12
_REPEATED = 3.0  # seconds in which a second signal says the same as the first, as training takes it


@dataclass
class Runner:
    """Works on cells. `before`: words put before every command, such as `nice -n 10`."""

    grid: Grid
    jobs: int = 1
    before: Sequence[str] = ()
    finished: Callable[[Cell, CellState], None] = lambda cell, state: None
    _processes: set[subprocess.Popen[bytes]] = field(default_factory=set)
    _stopping: threading.Event = field(default_factory=threading.Event)

    def run(self, cells: Sequence[Cell]) -> dict[str, CellState]:
        """Work on these cells, bases first; returns the state of each. SIGTERM and ctrl-C end it cleanly."""
        states = {cell.id: read_state(self.grid, cell) for cell in self.grid.cells}
        todo = [cell for cell in cells if states[cell.id].state != "done"]
        say(f"{len(cells) - len(todo)} of {len(cells)} cells are done; {self.jobs} at a time")
        with self._stops_cleanly(), ThreadPoolExecutor(self.jobs) as pool:
            working: dict[Future[CellState], Cell] = {}
            while (todo or working) and not self._stopping.is_set():
                for cell in [cell for cell in todo if self._is_blocked(cell, states)]:
                    todo.remove(cell)
                    states[cell.id] = self._block(cell)
                while len(working) < self.jobs and (ready := self._next(todo, states)):
                    todo.remove(ready)
                    working[pool.submit(self._work, ready)] = ready
                if not working:
                    break
                for future in wait(working, timeout=1, return_when=FIRST_COMPLETED).done:
                    cell = working.pop(future)
                    states[cell.id] = future.result()
                    self.finished(cell, states[cell.id])
        return {cell.id: states[cell.id] for cell in cells}

    def _next(self, todo: Sequence[Cell], states: dict[str, CellState]) -> Cell | None:
        ready = (cell for cell in todo if cell.base is None or states[cell.base].state == "done")
        return next(ready, None)

    def _is_blocked(self, cell: Cell, states: dict[str, CellState]) -> bool:
        return cell.base is not None and states[cell.base].state in ("failed", "blocked")

    def _block(self, cell: Cell) -> CellState:
        folder = self.grid.path(cell)
        folder.mkdir(parents=True, exist_ok=True)
        state = replace(stored_state(folder), state="blocked", error=f"it starts from {cell.base}")
        write_state(folder, state)
        self.finished(cell, state)
        return state

    def _work(self, cell: Cell) -> CellState:
        folder = self.grid.path(cell)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with cell_lock(folder).acquire(timeout=0):
                return self._stages(cell, folder)
        except Timeout:
            return CellState("failed", error="another process works on this cell")

    def _stages(self, cell: Cell, folder: Path) -> CellState:
        state = replace(stored_state(folder), state="running", error=None)
        if cell.run is not None and not is_trained(folder):
            write_text(folder / RUN_FILE, dump_config(cell.run))
            state = self._stage("train", cell, folder, state)
        if state.state == "running" and cell.model is not None and not is_evaluated(self.grid, cell):
            state = self._stage("evaluate", cell, folder, state)
            if state.state == "running":
                state = replace(state, evaluation=self.grid.evaluation)
        if state.state == "running":
            write_state(folder, state)  # with the evaluation's identity, which completeness asks for
            state = replace(state, state="done" if is_complete(self.grid, cell) else "failed", stage=None)
        write_state(folder, state)
        if state.state == "done" and not self.grid.study.keep_checkpoints:
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        return state

    def _stage(self, stage: str, cell: Cell, folder: Path, state: CellState) -> CellState:
        """The state after a command: still running, or failed with the end of its log."""
        make = {"train": train_command, "evaluate": evaluate_command}[stage]
        port = free_port()
        command = [*self.before, *make(self.grid, cell, port)]
        state = replace(state, stage=stage)
        write_state(folder, state)
        log = folder / f"{stage}.log"
        code, wall, cpu = self._process(command, log, self._environment(cell, port))
        state = state.with_stage(stage, wall, cpu)
        if code != 0:
            # 75: training was told to stop, saved, and goes on the next time.
            stopped = self._stopping.is_set() or code == 75
            ended = "was stopped" if stopped else f"ended with code {code}"
            kept: State = "pending" if stopped else "failed"
            return replace(state, state=kept, error=f"{stage} {ended}; {log}:\n{tail(log)}")
        return state

    def _environment(self, cell: Cell, port: int) -> dict[str, str]:
        threads = max(1, len(os.sched_getaffinity(0)) // (self.jobs * cell.ranks))
        mine = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        return {"OMP_NUM_THREADS": str(threads)} | dict(os.environ) | mine

    def _process(
        self, command: Sequence[str], log: Path, environment: dict[str, str]
    ) -> tuple[int, float, float]:
        """Exit code, wall seconds, and CPU seconds of the process and all that it started and awaited."""
        started = time.monotonic()
        with log.open("ab") as file:
            file.write(f"$ {shlex.join(command)}\n".encode())
            file.flush()
            process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment,
                start_new_session=True,
            )  # fmt: skip
            self._processes.add(process)
            if self._stopping.is_set():
                _end(process, signal.SIGTERM)
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            self._processes.discard(process)
        return process.returncode, time.monotonic() - started, used.ru_utime + used.ru_stime

    @contextmanager
    def _stops_cleanly(self) -> Iterator[None]:
        """While inside, a signal ends the commands; they go on from their checkpoints the next time.

        A second one kills them, if it comes some seconds later: Slurm tells a job's shell and its processes
        of the end, and the shell tells them again.
        """
        first: float | None = None

        def stop(number: int, _: object) -> None:
            nonlocal first
            now = time.monotonic()
            if first is not None and now - first < _REPEATED:
                return
            how = signal.SIGTERM if first is None else signal.SIGKILL
            first = now if first is None else first
            self._stopping.set()
            for process in list(self._processes):
                _end(process, how)

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        kept = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in kept.items():
                signal.signal(number, handler)

    @property
    def stopped(self) -> bool:
        """Whether a signal ended it."""
        return self._stopping.is_set()


def tail(log: Path, lines: int = _TAIL_LINES) -> str:
    """The last lines of a log that say something."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 20_000))
        text = file.read().decode("utf-8", errors="replace")
    return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])


def _end(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    try:
        os.killpg(process.pid, how)
    except ProcessLookupError:
        return
