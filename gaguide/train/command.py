"""The training program: its arguments, its ranks, and how a user's mistake ends on all of them."""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gaguide.config import RunConfig, load_config, parse_overrides
from gaguide.config.arguments import ArgumentParser
from gaguide.config.reference import settings_help
from gaguide.distributed import World, all_gather, out_of_memory, raise_together, start, stop
from gaguide.distributed.launcher import launchers
from gaguide.errors import (
    EXIT_NOT_FINITE,
    EXIT_PREEMPTED,
    EXIT_USER_ERROR,
    DivergedError,
    Fault,
    FaultCollector,
    LoneError,
    PreemptedError,
    UserError,
)
from gaguide.log import SlowWork, say
from gaguide.shipped import DEEPSPEED_JSONS
from gaguide.train.precheck import precheck

if TYPE_CHECKING:
    from gaguide.train.evaluating import MakeEvaluation
    from gaguide.train.job import Job

_REAL_RUN = (
    "no --config: this is the embedded run (a tiny GPT-2 on Python's own language reference).\n"
    "for a real one: gaguide data build --source Skylion007/openwebtext --rows 1000000 --tokenizer gpt2 "
    "--output data/openwebtext-1m\n"
    "then:           deepspeed --module gaguide.train --deepspeed zero2 --config gpt2-4-transition"
)


def main(argv: Sequence[str] | None = None, make_evaluation: MakeEvaluation | None = None) -> int:
    """Train; returns the exit code, the same on every rank: 0, EXIT_USER_ERROR, EXIT_PREEMPTED,
    EXIT_NOT_FINITE.

    `make_evaluation` makes the evaluation during training, which this package does not import.
    """
    is_main = True
    launchers()  # recorded now, so that the loss of one while modules load is noticed
    try:
        world = World.from_environment()
        is_main = world.is_main
        try:
            arguments = parse_arguments(argv)
            if world.size == 1 and not _passes_precheck(arguments, world):
                return EXIT_USER_ERROR
        except UserError:
            # The same on all ranks. Launchers stop all when one ends, so rank 0 must have printed by then.
            if not is_main:
                time.sleep(3)
            raise
        _train(arguments, world, make_evaluation)
        return 0
    except UserError as error:
        # Every rank is here at the same moment, or one alone; the launcher stops all once one has ended.
        if is_main or isinstance(error, LoneError):
            say(f"train: {error}", error=True)
        return EXIT_USER_ERROR
    except PreemptedError as stopped:
        if is_main:
            say(f"train: {stopped}", error=True)
        return EXIT_PREEMPTED
    except DivergedError as error:
        if is_main:
            say(f"train: {error}", error=True)
        return EXIT_NOT_FINITE
    except RuntimeError as error:
        fault = _too_little_memory(error)
        if fault is None:
            raise
        # One rank may be here alone: it reports its own fault, and the launcher ends the others.
        say(f"train: {UserError(fault)}", error=True)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:  # before the first step, when there is nothing to save
        return 128 + signal.SIGINT
    finally:
        stop()


def _passes_precheck(arguments: Arguments, world: World) -> bool:
    """Whether `precheck` finds nothing, for a single rank; otherwise all faults have been printed.

    Those that need neither model nor data are printed at once, the others after torch is loaded.
    """
    given = arguments.config, arguments.overrides
    try:
        precheck(*given, arguments.deepspeed, ranks=1)
        return True
    except UserError as error:
        early = error
    say(f"train: {early}", error=True)
    try:
        run = load_config(*given)
    except UserError:
        return False  # without settings nothing else can be checked
    say("gaguide train: looking for further problems in model and data", error=True)
    from gaguide.train.preflight import prepare

    try:
        prepare(run, arguments.deepspeed, world, create_output=False)
    except UserError as error:
        later = [fault for fault in error.faults if fault not in early.faults]
        say(f"train: {UserError(later)}" if later else "gaguide train: no further problems", error=True)
    return False


def _train(arguments: Arguments, world: World, make_evaluation: MakeEvaluation | None) -> None:
    if world.is_main:
        say("gaguide train: loading torch and DeepSpeed")
    from gaguide.engine.build import silence_deepspeed
    from gaguide.train.probe import settle_micro_batch
    from gaguide.train.run import train

    silence_deepspeed()
    start(world)
    deepspeed_json = arguments.deepspeed
    notes: list[str] = []
    with SlowWork("looking at model and data", shown=world.is_main):
        job = _check(arguments, world, notes.append)
    if world.is_main and arguments.config is None:
        say(_REAL_RUN)
    for note in notes if world.is_main else ():
        say(note)
    job = settle_micro_batch(job, deepspeed_json, world)
    if job.run.evaluate.every and make_evaluation is None:
        problem = "this program does not evaluate while it trains"
        raise UserError.of(
            "evaluate.every", problem, "start it as python -m gaguide.train", job.run.evaluate.every
        )
    evaluation = make_evaluation(job, world) if make_evaluation is not None else None
    if arguments.dry_run:
        from gaguide.train.dry_run import describe_dry_run

        text = raise_together(lambda: describe_dry_run(job, world))
        if world.is_main:
            say(text)
        return
    if world.is_main:
        say(job.describe(world))
    train(job, world, evaluation)


def _check(arguments: Arguments, world: World, note: Callable[[str], None]) -> Job:
    """The job of these arguments; a collective. All faults of all ranks are raised as one `UserError`."""
    from gaguide.train.preflight import prepare

    faults = FaultCollector()
    given = arguments.config, arguments.overrides
    run = faults.attempt(precheck, *given, arguments.deepspeed, ranks=world.size, note=note)
    if run is None:  # its settings may still be well-formed: then what needs the model is reported as well
        with suppress(UserError):
            run = load_config(*given)

    def prepare_or_raise() -> Job:
        if run is None or not everywhere:
            raise UserError(faults.faults)
        create_output = not faults and not arguments.dry_run
        job = faults.attempt(prepare, run, arguments.deepspeed, world, create_output=create_output)
        if job is None or faults:
            raise UserError(faults.faults)
        return job

    # A file may be missing on one host only: then no rank reaches what ranks check together.
    everywhere = all(all_gather(run is not None))
    return raise_together(prepare_or_raise)


def _too_little_memory(error: RuntimeError) -> Fault | None:
    if not out_of_memory(error):
        return None
    reason = str(error).partition(". ")[0]
    problem = f"rank {os.environ.get('RANK', '0')} ran out of memory ({reason})"
    remedy = (
        "lower train.micro_batch (or write auto), set train.gradient_checkpointing: true, or take a JSON "
        "that partitions or offloads more (ds_configs/README.md); the last checkpoint is complete"
    )
    return Fault("train.micro_batch", problem, remedy)


@dataclass(frozen=True)
class Arguments:
    """The command line of a training."""

    deepspeed: Path
    """The DeepSpeed JSON: its path or a shipped one's name."""
    config: Path | None
    """The run's YAML or a recipe's name; None for the embedded run."""
    overrides: dict[str, str]
    """Settings given as --section.field VALUE."""
    dry_run: bool = False
    """Whether to check and report everything, and train nothing."""


def parse_arguments(argv: Sequence[str] | None) -> Arguments:
    """The command line, without reading a file; `--help` prints and exits. Raises a `UserError`."""
    parser = ArgumentParser(
        prog="gaguide train",
        description="Train a model, guided or not. Any setting of the run follows as --section.field VALUE; "
        "it takes precedence over the run's YAML.",
        epilog=settings_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--deepspeed",
        type=Path,
        required=True,
        help=f"a DeepSpeed JSON: its path, or one of {', '.join(DEEPSPEED_JSONS.names())}",
    )
    parser.add_argument(
        "--config",
        type=Path,
        help="a run's YAML: its path, or a recipe's name such as gpt2-4-transition; without it, the "
        "embedded demo is trained",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything, print the resolved settings, batch, memory and data, and train nothing",
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    known, overrides = parser.parse_known_args(argv)
    return Arguments(known.deepspeed, known.config, parse_overrides(overrides), known.dry_run)


def read_arguments(argv: Sequence[str] | None) -> tuple[RunConfig, Path]:
    """The run and the DeepSpeed JSON of a command line."""
    arguments = parse_arguments(argv)
    return load_config(arguments.config, arguments.overrides), arguments.deepspeed
