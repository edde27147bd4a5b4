"""The evaluation program: arguments, ranks, exit codes."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from gaguide.config.arguments import ArgumentParser, shared
from gaguide.distributed import World, barrier, start, stop
from gaguide.distributed.launcher import launchers
from gaguide.errors import EXIT_NOT_FINITE, EXIT_USER_ERROR, LoneError, UserError
from gaguide.evaluate.tasks.options import DEFAULTS, TaskOptions
from gaguide.files import disk_errors, expand_home, local_folder
from gaguide.numbers import parse_whole

_MAX_WAIT_MINUTES = 24 * 60
EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C, as for a shell's commands."""


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate; returns the exit code, the same on every rank.

    0, `EXIT_NOT_FINITE` where scores of a model were not finite, or `EXIT_USER_ERROR` after a `UserError`.
    """
    launchers()  # recorded now, so that the loss of one while modules load is noticed
    try:
        world = World.from_environment()
    except UserError as error:  # it may come from any rank
        print(f"evaluate: {error}", file=sys.stderr, flush=True)
        return EXIT_USER_ERROR
    joined = False
    try:
        arguments = parser().parse_args(argv)
        arguments.output = local_folder(arguments.output, "--output")
        arguments.model = [str(expand_home(name)) for name in arguments.model]
        # Ranks that finish early wait for the others; `watched` notices a rank that is lost.
        start(world, timeout_minutes=_MAX_WAIT_MINUTES)
        joined = True
        with disk_errors(arguments.output):
            return _evaluate(arguments, world)
    except LoneError as error:  # the other ranks notice that this one is gone
        print(f"evaluate: {error}", file=sys.stderr, flush=True)
        return EXIT_USER_ERROR
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
    from gaguide.evaluate.results.table import print_comparison, print_parts, print_table, print_worst
    from gaguide.evaluate.runner import EvaluateSettings, evaluate_all, output_folders
    from gaguide.evaluate.tasks.locate import split_names
    from gaguide.liveness.peers import watch_evaluation
    from gaguide.log import say

    settings = EvaluateSettings(**shared(arguments, EvaluateSettings), options=_options(arguments))
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
        print_parts(results)
        print_worst(results)
        say(f"written: {folder / 'results.json'}")
    if len(several) > 1:
        print_comparison([folder.name for folder in folders], several)
    return code


def _options(arguments: argparse.Namespace) -> TaskOptions:
    """Raises `UserError` for options that exclude each other."""
    chat, multiturn = arguments.apply_chat_template, arguments.fewshot_as_multiturn
    if multiturn and not chat:
        problem, remedy = "needs --apply-chat-template", "give both or neither"
        raise UserError.of("--fewshot-as-multiturn", problem, remedy)
    given = {"include_path": tuple(arguments.include_path), "fewshot_as_multiturn": multiturn is not False}
    return TaskOptions(**shared(arguments, TaskOptions) | given)


def parser() -> ArgumentParser:
    """Parser of the command's arguments; raises `UserError` for a wrong one."""
    parser = ArgumentParser(
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
    _add_harness_arguments(parser)
    parser.add_argument(
        "--deepspeed",
        type=Path,
        help="DeepSpeed JSON of ZeRO stage 3, by path or name (zero3): partition the model among the ranks",
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    return parser


def _add_harness_arguments(parser: argparse.ArgumentParser) -> None:
    """Options under lm-evaluation-harness's names, which it spells with underscores too."""
    group = parser.add_argument_group("as in lm-evaluation-harness")
    group.add_argument(
        "--include-path", "--include_path", type=expand_home, nargs="+", default=[], metavar="DIR",
        help="folders of its task files, whose tasks, groups and tags --tasks may then name",
    )  # fmt: skip
    group.add_argument(
        "--trust-remote-code", "--trust_remote_code", action="store_true",
        help="run the Python functions that its task files name (!function)",
    )  # fmt: skip
    group.add_argument(
        "--apply-chat-template", "--apply_chat_template", action="store_true",
        help="render prompts with the model's chat template",
    )  # fmt: skip
    group.add_argument(
        "--system-instruction", "--system_instruction", default="", metavar="TEXT",
        help="text before a task's description",
    )  # fmt: skip
    group.add_argument(
        "--fewshot-as-multiturn", "--fewshot_as_multiturn", action=argparse.BooleanOptionalAction,
        help="with a chat template: each demonstration is a turn of its own (default), or all are in one "
        "message",
    )  # fmt: skip
    group.add_argument(
        "--fewshot-seed", "--fewshot_seed", type=parse_whole, default=DEFAULTS.fewshot_seed, metavar="N",
        help=f"seed of the demonstrations of its tasks (default: {DEFAULTS.fewshot_seed}, as there)",
    )  # fmt: skip
    group.add_argument(
        "--log-samples", "--log_samples", action="store_true",
        help="write samples_TASK.jsonl in its form, each with all texts and log-probabilities",
    )  # fmt: skip
