"""The program `gaguide ablate`: arguments, exit codes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gaguide.ablate.methods import METHODS
from gaguide.config.arguments import ArgumentParser, shared
from gaguide.errors import EXIT_NOT_FINITE, EXIT_USER_ERROR, UserError
from gaguide.files import disk_errors, expand_home, output_folder
from gaguide.numbers import parse_whole

if TYPE_CHECKING:
    from gaguide.ablate.records import AblationRecord


Show = Callable[["AblationRecord", Path], None]


def main(argv: Sequence[str] | None = None, show: Show = lambda record, folder: None) -> int:
    """Ablate and write the records; returns the exit code.

    0, `EXIT_NOT_FINITE` where a loss is not finite, or `EXIT_USER_ERROR` after a `UserError`. `show` is
    called with the record and its folder at the end.
    """
    try:
        with disk_errors():
            return _ablate(parser().parse_args(argv), show)
    except UserError as error:
        print(f"ablate: {error}", file=sys.stderr, flush=True)
        return EXIT_USER_ERROR


def _ablate(arguments: argparse.Namespace, show: Show) -> int:
    print("ablate: reading models, plan and text", flush=True)  # the imports alone may take seconds
    from gaguide.ablate.measure import ablate
    from gaguide.ablate.records import FILE, write_ablation
    from gaguide.ablate.request import AblateSettings, read_request
    from gaguide.distributed import World
    from gaguide.evaluate.score.scorer import make_sums_reproducible
    from gaguide.evaluate.tasks.locate import split_names

    output: Path = output_folder(arguments.output, "--output")
    if (output / FILE).exists():
        problem = f"already has an {FILE}"
        raise UserError.of("--output", problem, "choose another folder", str(output))
    make_sums_reproducible()
    arguments.tasks, arguments.methods = (
        tuple(split_names(given)) for given in (arguments.tasks, arguments.methods)
    )
    settings = AblateSettings(**shared(arguments, AblateSettings))
    world = World.from_environment()
    if world.size > 1:
        problem, remedy = "runs in one process", "start it without a launcher, with one model a process"
        raise UserError.of("ranks", problem, remedy, world.size)
    request = read_request(arguments.model, arguments.plan, settings)
    record = ablate(request, world)
    write_ablation(output, record)
    show(record, output)
    failed = request.text is not None and any(model.loss is None for model in record.models)
    failed |= any(value is None for model in record.models for metrics in model.tasks.values()
                  for value in metrics.values())  # fmt: skip
    return EXIT_NOT_FINITE if failed else 0


def _expanded(path: str) -> str:
    return str(expand_home(path))


def parser() -> ArgumentParser:
    """Parser of the command's arguments; raises `UserError` for a wrong one."""
    parser = ArgumentParser(
        prog="gaguide ablate",
        description="Remove guided heads, one at a time and all at once, and measure a model without them: "
        "does it use them? Random other heads of the same layers are removed as controls.",
        epilog="Writes ablation.json and report.html into the output folder.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", required=True, nargs="+", type=_expanded,
        help="folder made by save_pretrained, a run's folder, or a hub id; one or more, and the others are "
        "compared with the first")  # fmt: skip
    add("--plan", help="which heads: an experiment, a run's config.yaml, or a YAML file with a guidance "
        "section, or PLANS.yaml:NAME (default: that of the run whose folder holds the model)")  # fmt: skip
    add("--text", type=_expanded, help="shards, by folder or address, or embedded (default: the held-out "
        "text of the plan's run, without --tasks)")  # fmt: skip
    add("--blocks", type=parse_whole, default=64, help="held-out blocks, spread over the split (default: 64)")
    add("--block-length", type=parse_whole, help="tokens of a block (default: as the plan's run, else the "
        "model's positions, at most 1024)")  # fmt: skip
    add("--batch", type=parse_whole, default=8, help="blocks of a forward pass (default: 8)")
    add("--tasks", nargs="+", default=[], help="tasks, as in gaguide evaluate; attention is measured on "
        "the spans that their data give")  # fmt: skip
    add("--data", type=expand_home, help="folder with the data files of named tasks (default: the hub)")
    add("--limit", type=parse_whole, help="only the first N examples of each task")
    add("--batch-tokens", type=parse_whole, help="padded tokens of a batch of tasks (default: by device)")
    add("--methods", nargs="+", default=["mean", "zero"],
        help=f"ways of removing a head, of {', '.join(METHODS)}; verdicts rest on the first (default: mean "
        "zero)")  # fmt: skip
    add("--controls", type=parse_whole, default=3,
        help="random unguided heads of the same layer for each guided head (default: 3)")  # fmt: skip
    add("--all-heads", dest="every", action="store_true",
        help="remove all other heads as well, for the heat map")  # fmt: skip
    add("--before", type=_expanded, help="model that attention is compared with, or start: the plan's run "
        "before training (default: the first of several models, else start if there is a run)")  # fmt: skip
    add("--dtype", default="fp32", help="fp32 (default), bf16 or fp16")
    add(
        "--seed",
        type=parse_whole,
        default=0,
        help="seed of the choice of controls and of resampling (default: 0)",
    )
    add("--output", required=True, help="folder for the results")
    return parser
