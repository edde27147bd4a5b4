"""The evaluation program: arguments, ranks, exit codes."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from gaguide.distributed import World, barrier, start, stop
from gaguide.errors import EXIT_NOT_FINITE, EXIT_USER_ERROR, Fault, UserError
from gaguide.files import expand_home, local_folder
from gaguide.numbers import parse_whole

_MAX_WAIT_MINUTES = 24 * 60
EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C, as of a shell's commands."""


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate; returns the exit code, the same on every rank.

    0, `EXIT_NOT_FINITE` where scores of a model were not finite, or `EXIT_USER_ERROR` after a `UserError`.
    """
    world = World.from_environment()
    joined = False
    try:
        arguments = parser().parse_args(argv)
        arguments.output = local_folder(arguments.output, "--output")
        arguments.model = [str(expand_home(name)) for name in arguments.model]
        # Ranks that finish early wait for the others; `watched` notices a rank that is lost.
        start(world, timeout_minutes=_MAX_WAIT_MINUTES)
        joined = True
        return _evaluate(arguments, world)
    except UserError as error:
        if world.is_main:
            print(f"evaluate: {error}", file=sys.stderr, flush=True)
        # Launchers stop all ranks as soon as one exits with an error: rank 0 must have printed by then.
        if joined:
            barrier()
        elif not world.is_main:
            time.sleep(3)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        if world.is_main:
            print(
                "evaluate: interrupted; finished examples are kept, and the same command resumes from them",
                file=sys.stderr,
                flush=True,
            )
        return EXIT_INTERRUPTED
    finally:
        stop()


def _evaluate(arguments: argparse.Namespace, world: World) -> int:
    if world.is_main:
        print("evaluate: reading tasks and model", flush=True)  # the imports alone may take seconds
    from gaguide.evaluate.results.metrics import not_finite
    from gaguide.evaluate.results.table import print_comparison, print_table, print_worst
    from gaguide.evaluate.runner import EvaluateSettings, evaluate_all, output_folders
    from gaguide.evaluate.tasks.locate import split_names
    from gaguide.liveness.peers import watch_evaluation
    from gaguide.log import say

    settings = EvaluateSettings(
        batch_tokens=arguments.batch_tokens,
        dtype=arguments.dtype,
        limit=arguments.limit,
        data=arguments.data,
        shots=arguments.shots,
        deepspeed=arguments.deepspeed,
        on_overflow=arguments.on_overflow,
    )
    tasks = split_names(arguments.tasks)
    with watch_evaluation(world):
        several = evaluate_all(arguments.model, tasks, arguments.output, world, settings)
    failed = any(not_finite(task.scored) for results in several for task in results.tasks.values())
    code = EXIT_NOT_FINITE if failed else 0
    if not world.is_main:
        return code
    folders = output_folders(arguments.output, arguments.model)
    for results, folder in zip(several, folders, strict=True):
        print_table(results)
        print_worst(results)
        say(f"written: {folder / 'results.json'}")
    if len(several) > 1:
        print_comparison([folder.name for folder in folders], several)
    return code


class _Parser(argparse.ArgumentParser):
    """Raises `UserError` for a wrong argument, so that only one rank prints it."""

    def error(self, message: str) -> NoReturn:
        raise UserError(Fault("arguments", message, f"see {self.prog} --help"))


def parser() -> argparse.ArgumentParser:
    """Parser of the command's arguments; raises `UserError` for a wrong one."""
    parser = _Parser(
        prog="gaguide evaluate",
        description="Evaluate a causal language model on multiple-choice and probability tasks.",
        epilog="Writes results.json, results_lm_eval.json and examples.parquet into the output folder.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model", required=True, nargs="+", help="folder made by save_pretrained, or a hub id; one or more"
    )
    parser.add_argument(
        "--tasks", required=True, nargs="+",
        help="folders, .jsonl, .csv or .yaml files, task names, or the groups inverse-scaling and demo; "
        "separated by spaces or commas",
    )  # fmt: skip
    parser.add_argument("--output", required=True, help="folder for the results")
    parser.add_argument(
        "--data", type=expand_home, help="folder with the data files of named tasks (default: the hub)"
    )
    parser.add_argument(
        "--batch-tokens",
        type=parse_whole,
        help="padded tokens of a batch (default: 512 on a CPU, 16384 on a GPU)",
    )
    parser.add_argument("--dtype", default="fp32", help="fp32 (default), bf16 or fp16")
    parser.add_argument("--limit", type=parse_whole, help="only the first N examples of each task")
    parser.add_argument(
        "--shots", type=parse_whole, help="demonstrations before every prompt (default: as the task says)"
    )
    parser.add_argument(
        "--on-overflow",
        default="cut",
        help="examples longer than the model: cut them on the left (default), drop-demonstrations, or fail",
    )
    parser.add_argument(
        "--deepspeed",
        type=Path,
        help="DeepSpeed JSON of ZeRO stage 3, by path or name (zero3): partition the model among the ranks",
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    return parser
