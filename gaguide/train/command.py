"""The training program: its arguments, its ranks, and how a user's mistake ends on all of them."""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from gaguide.config import EMBEDDED, RunConfig, load_config, parse_overrides
from gaguide.distributed import World, out_of_memory, raise_together, start, stop
from gaguide.distributed.launcher import launchers
from gaguide.errors import (
    EXIT_NOT_FINITE,
    EXIT_PREEMPTED,
    EXIT_USER_ERROR,
    DivergedError,
    Fault,
    PreemptedError,
    UserError,
)
from gaguide.log import SlowWork, say
from gaguide.shipped import DEEPSPEED_JSONS

if TYPE_CHECKING:
    from gaguide.train.evaluating import MakeEvaluation

_REAL_RUN = (
    "no --config: this is the embedded run (a tiny GPT-2 on Python's own language reference).\n"
    "for a real one: gaguide data build --source Skylion007/openwebtext --rows 1000000 --tokenizer gpt2 "
    "--output data/openwebtext-1m\n"
    "then:           deepspeed launch/train.py --deepspeed ds_configs/zero2.json "
    "--config launch/recipes/gpt2-4-transition.yaml"
)


def main(argv: Sequence[str] | None = None, make_evaluation: MakeEvaluation | None = None) -> int:
    """Train; returns the exit code, the same on every rank: 0, EXIT_USER_ERROR, EXIT_PREEMPTED,
    EXIT_NOT_FINITE.

    `make_evaluation` makes the evaluation during training, which this package does not import.
    """
    is_main = True
    launchers()  # recorded now, so that one that dies while modules load is noticed
    try:
        world = World.from_environment()
        is_main = world.is_main
        _train(argv, world, make_evaluation)
        return 0
    except UserError as error:
        # Every rank is here at the same moment; the launcher stops all as soon as one has ended.
        if is_main:
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


def _train(argv: Sequence[str] | None, world: World, make_evaluation: MakeEvaluation | None) -> None:
    from gaguide.engine.build import silence_deepspeed
    from gaguide.train.preflight import prepare
    from gaguide.train.probe import settle_micro_batch
    from gaguide.train.run import train

    silence_deepspeed()
    start(world)
    # A file may be missing on one host only: all ranks look, then all know.
    notes: list[str] = []
    run, deepspeed_json, config = raise_together(lambda: read_arguments(argv, notes.append))
    if world.is_main and config is None:
        say(_REAL_RUN)
    for note in notes if world.is_main else ():
        say(note)
    with SlowWork("looking at model and data", shown=world.is_main):
        job = raise_together(lambda: prepare(run, deepspeed_json, world))
    job = settle_micro_batch(job, deepspeed_json, world)
    if job.run.evaluate.every and make_evaluation is None:
        problem = "this program does not evaluate while it trains"
        raise UserError(
            Fault("evaluate.every", problem, "start it as python -m gaguide.train", job.run.evaluate.every)
        )
    evaluation = make_evaluation(job, world) if make_evaluation is not None else None
    if world.is_main:
        say(job.describe(world))
    train(job, world, evaluation)


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


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(Fault("arguments", message, self.format_usage().strip()))


def read_arguments(
    argv: Sequence[str] | None, note: Callable[[str], None] = lambda text: None
) -> tuple[RunConfig, Path, Path | None]:
    """The run, the DeepSpeed JSON and the run's YAML (None: the embedded run) of a command line.

    `note` is called with what the user should know of how they were combined.
    """
    parser = _Parser(
        prog="gaguide train",
        description="Train a model, guided or not. Any setting of the run follows as --section.field VALUE.",
        epilog=f"Fields and their meaning: gaguide/config/run.py; the default run: {EMBEDDED}",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--deepspeed",
        type=Path,
        required=True,
        help=f"a DeepSpeed JSON: its path, or one of {', '.join(DEEPSPEED_JSONS.names())}",
    )
    parser.add_argument(
        "--config", type=Path, help="a run's YAML: its path, or a recipe's name such as gpt2-4-transition"
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    known, overrides = parser.parse_known_args(argv)
    return load_config(known.config, parse_overrides(overrides), note), known.deepspeed, known.config
