"""Run a study on this machine: several cells at a time, each in its own process; finished ones are skipped.

A cell that fails keeps the last lines of its log in its state and stops no other cell; cells that start from
it are blocked.
"""

from __future__ import annotations

import itertools
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
from gaguide.distributed.launcher import STUDY_VARIABLE
from gaguide.errors import EXIT_NOT_FINITE, EXIT_PREEMPTED, UserError
from gaguide.files import write_settings
from gaguide.log import say
from gaguide.ports import free_port
from gaguide.study.commands import RUN_FILE, ablate_command, evaluate_command, train_command
from gaguide.study.grid import Cell, Grid
from gaguide.study.records import State
from gaguide.study.state import (
    CellState,
    ablation_file,
    cell_lock,
    changed_tasks,
    evaluation_file,
    is_complete,
    is_evaluated,
    is_trained,
    needs_ablation,
    read_state,
    stale_ablation,
    stored_state,
    write_state,
)

_TAIL_LINES = 12
_REPEATED_SECONDS = 3.0
"""A signal this soon after the first is taken for its repetition, as in training."""


@dataclass
class Runner:
    """Trains and evaluates cells."""

    grid: Grid
    """The study."""
    jobs: int = 1
    """Number of cells at a time."""
    before: Sequence[str] = ()
    """Words put before every command, such as `nice -n 10`."""
    finished: Callable[[Cell, CellState], None] = lambda cell, state: None
    """Called with every cell that ends or is blocked."""
    _processes: set[subprocess.Popen[bytes]] = field(default_factory=set)
    _stopping: threading.Event = field(default_factory=threading.Event)

    def run(self, cells: Sequence[Cell]) -> dict[str, CellState]:
        """Train and evaluate `cells`, bases first; cell id → state. SIGTERM and ctrl-C stop it cleanly."""
        if self.grid.tasks.faults:
            raise UserError(self.grid.tasks.faults)
        states = {cell.id: read_state(self.grid, cell) for cell in self.grid.cells}
        todo = [cell for cell in cells if states[cell.id].state != "done" or needs_ablation(self.grid, cell)]
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
        state = replace(stored_state(folder), state="blocked", error=f"its base {cell.base} failed")
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
            return CellState("failed", error="another process is working on this cell")

    def _stages(self, cell: Cell, folder: Path) -> CellState:
        state = replace(stored_state(folder), state="running", error=None)
        if cell.run is not None and not is_trained(folder):
            write_settings(folder / RUN_FILE, dump_config(cell.run))
            state = self._stage("train", cell, folder, state)
        if state.state == "running" and cell.model is not None and not is_evaluated(self.grid, cell):
            _set_aside(evaluation_file(folder), "its evaluation was of other tasks, contents or weights")
            state = self._stage("evaluate", cell, folder, state)
            if state.state == "running":
                contents = {name: of.identity for name, of in self.grid.tasks.contents.items()}
                state = replace(state, evaluation=self.grid.evaluation, contents=contents)
        if state.state == "running" and needs_ablation(self.grid, cell):
            state = self._remove_heads(cell, folder, state)
        if state.state == "running":
            write_state(folder, state)  # with the evaluation's identity, which `is_complete` compares
            state = self._ended(cell, folder, state)
        write_state(folder, state)
        if state.state == "done" and not self.grid.study.keep_checkpoints:
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        return state

    def _remove_heads(self, cell: Cell, folder: Path, state: CellState) -> CellState:
        """The state after the ablation. Where that fails, the cell keeps its results, and the error."""
        _set_aside(ablation_file(folder), str(stale_ablation(self.grid, cell)))
        after = self._stage("ablate", cell, folder, state)
        if after.state == "running":
            return replace(after, ablation=self.grid.ablation)
        return replace(after, state="running") if after.state == "failed" else after

    def _ended(self, cell: Cell, folder: Path, state: CellState) -> CellState:
        """The state after all stages: `done`, or `failed` where results are missing."""
        if is_complete(self.grid, cell):
            return replace(state, state="done", stage=None)
        changed = changed_tasks(self.grid, folder, state) if evaluation_file(folder).is_file() else []
        error = "it wrote no summary or no results"
        if changed:
            error = f"the data of {', '.join(changed)} changed while the study ran; run the study again"
        return replace(state, state="failed", stage=None, error=error)

    def _stage(self, stage: str, cell: Cell, folder: Path, state: CellState) -> CellState:
        """Run a command and return the state after it: `running`, or `failed` with the end of the log."""
        make = {"train": train_command, "evaluate": evaluate_command, "ablate": ablate_command}[stage]
        port = free_port()
        command = [*self.before, *make(self.grid, cell, port)]
        state = replace(state, stage=stage)
        write_state(folder, state)
        log = folder / f"{stage}.log"
        code, wall, cpu = self._process(command, log, self._environment(cell, port))
        state = state.with_stage(stage, wall, cpu)
        written = {"evaluate": evaluation_file(folder), "ablate": ablation_file(folder)}
        if code == EXIT_NOT_FINITE and stage in written and written[stage].is_file():
            return state  # complete; numbers that are not finite are left out by name (`left_out`)
        if code != 0:
            stopped = self._stopping.is_set() or code == EXIT_PREEMPTED
            ended = "was stopped" if stopped else f"ended with code {code}"
            if code == EXIT_NOT_FINITE:
                ended = "diverged: its numbers are not finite"
            after: State = "pending" if stopped else "failed"
            return replace(state, state=after, error=f"{stage} {ended}; {log}:\n{tail(log)}")
        return state

    def _environment(self, cell: Cell, port: int) -> dict[str, str]:
        threads = max(1, len(os.sched_getaffinity(0)) // (self.jobs * cell.ranks))
        mine = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), STUDY_VARIABLE: str(os.getpid())}
        return {"OMP_NUM_THREADS": str(threads)} | dict(os.environ) | mine

    def _process(
        self, command: Sequence[str], log: Path, environment: dict[str, str]
    ) -> tuple[int, float, float]:
        """Exit code, wall seconds, and CPU seconds of the process and of all processes it waited for."""
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
        """While inside, SIGINT and SIGTERM end the commands, which resume from their checkpoints next time.

        A second signal kills them if it comes seconds later: Slurm signals a job's shell and its processes,
        and the shell passes the signal on, so that the first one arrives twice.
        """
        first: float | None = None

        def stop(number: int, _: object) -> None:
            nonlocal first
            now = time.monotonic()
            if first is not None and now - first < _REPEATED_SECONDS:
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
        """Whether a signal stopped the run."""
        return self._stopping.is_set()


def tail(log: Path) -> str:
    """The last lines of a log that are not blank."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 20_000))
        text = file.read().decode("utf-8", errors="replace")
    return "\n".join([line for line in text.splitlines() if line.strip()][-_TAIL_LINES:])


def _set_aside(record: Path, why: str) -> None:
    """Rename the folder of a finished record that no longer matches, so that none of its files remain."""
    if not record.is_file():
        return
    folder, cell = record.parent, record.parent.parent
    numbers = itertools.count(1)
    target = next(path for at in numbers if not (path := cell / f"{folder.name}.replaced-{at}").exists())
    folder.rename(target)
    say(f"{cell.name}: {why}; kept as {target.name}")


def _end(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    try:
        os.killpg(process.pid, how)
    except ProcessLookupError:
        return
