"""`gaguide submit train | evaluate | data`: the same command lines, as jobs of Slurm."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gaguide.errors import Fault
    from gaguide.slurm import Kind, Request

_PASSED = {"allow_extra_args": True, "ignore_unknown_options": True}

Nodes = Annotated[int, typer.Option(help="Hosts.")]
Gpus = Annotated[int | None, typer.Option(help="GPUs of each host; one rank each.", show_default="none")]
Ranks = Annotated[
    int | None, typer.Option(help="Ranks on each host.", show_default="one for each GPU, else one")
]
Cpus = Annotated[int | None, typer.Option(help="Cores for each rank.", show_default="the cluster's")]
Memory = Annotated[str | None, typer.Option(help="Memory of each host: 64G; 0 is all of it.")]
Time = Annotated[str, typer.Option(help="Time limit, HOURS:MINUTES:SECONDS or DAYS-HOURS.")]
Partition = Annotated[str | None, typer.Option(help="Partition (queue); `sinfo` lists them.")]
Account = Annotated[str | None, typer.Option(help="Account that is billed.")]
Qos = Annotated[str | None, typer.Option(help="Quality of service.")]
Requeue = Annotated[
    bool,
    typer.Option(
        "--requeue/--no-requeue",
        help="Back into the queue after a lost host or a preemption; training also after its time limit.",
    ),
]
Container = Annotated[Path | None, typer.Option(help="Apptainer image to run in.")]
Python = Annotated[
    str | None,
    typer.Option(help="Python on the hosts.", show_default="this one; in a container its own"),
]
Setup = Annotated[
    list[str] | None,
    typer.Option(help="Shell command before the start, e.g. 'module load cuda'. Repeatable."),
]
Sbatch = Annotated[
    list[str] | None, typer.Option(help="Further option of sbatch: --sbatch=--constraint=a100.")
]
Name = Annotated[str | None, typer.Option("--job-name", help="Name in the queue.")]
Logs = Annotated[Path, typer.Option(help="Folder for the job's script and logs.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the script and the command, hand in nothing.")]


def register(app: typer.Typer) -> None:
    """Add `submit` and its subcommands."""
    jobs = typer.Typer(no_args_is_help=True, help="Hand a command in as a job of Slurm.")
    for command in (train, evaluate, data):
        jobs.command(context_settings=_PASSED)(command)
    app.add_typer(jobs, name="submit")


def train(
    context: typer.Context,
    nodes: Nodes = 1,
    gpus_per_node: Gpus = None,
    ranks_per_node: Ranks = None,
    cpus_per_rank: Cpus = None,
    memory: Memory = None,
    time: Time = "12:00:00",
    partition: Partition = None,
    account: Account = None,
    qos: Qos = None,
    requeue: Requeue = True,
    signal_seconds: Annotated[
        int, typer.Option(help="Seconds before the limit at which the ranks are told to save and end.")
    ] = 180,
    chain: Annotated[
        int, typer.Option(help="Jobs one after another, for a run that is longer than a time limit.")
    ] = 1,
    container: Container = None,
    python: Python = None,
    setup: Setup = None,
    sbatch: Sbatch = None,
    job_name: Name = None,
    logs: Logs = Path("slurm"),
    dry_run: DryRun = False,
) -> None:
    """Train; all other arguments are launch/train.py's: --deepspeed DS.json --config RUN.yaml …"""
    request = _request(
        "train", context, job_name, python, container,
        nodes=nodes, gpus_per_node=gpus_per_node, ranks_per_node=ranks_per_node, cpus_per_rank=cpus_per_rank,
        memory=memory, time=time, partition=partition, account=account, qos=qos, requeue=requeue,
        signal_seconds=signal_seconds, chain=chain, setup=tuple(setup or ()), options=tuple(sbatch or ()),
    )  # fmt: skip
    _hand_in(request, _train_faults, logs, dry_run)


def evaluate(
    context: typer.Context,
    nodes: Nodes = 1,
    gpus_per_node: Gpus = None,
    ranks_per_node: Ranks = None,
    cpus_per_rank: Cpus = None,
    memory: Memory = None,
    time: Time = "02:00:00",
    partition: Partition = None,
    account: Account = None,
    qos: Qos = None,
    requeue: Requeue = True,
    container: Container = None,
    python: Python = None,
    setup: Setup = None,
    sbatch: Sbatch = None,
    job_name: Name = None,
    logs: Logs = Path("slurm"),
    dry_run: DryRun = False,
) -> None:
    """Evaluate; all other arguments are launch/evaluate.py's: --model DIR --tasks … --output DIR"""
    request = _request(
        "evaluate", context, job_name, python, container,
        nodes=nodes, gpus_per_node=gpus_per_node, ranks_per_node=ranks_per_node, cpus_per_rank=cpus_per_rank,
        memory=memory, time=time, partition=partition, account=account, qos=qos, requeue=requeue,
        setup=tuple(setup or ()), options=tuple(sbatch or ()),
    )  # fmt: skip
    _hand_in(request, _evaluate_faults, logs, dry_run)


def data(
    context: typer.Context,
    parts: Annotated[int, typer.Option(help="Tasks of the array; each builds its share.")] = 8,
    cpus_per_rank: Annotated[int, typer.Option("--cpus", help="Cores, and so processes, of a task.")] = 8,
    memory: Memory = None,
    time: Time = "04:00:00",
    partition: Partition = None,
    account: Account = None,
    qos: Qos = None,
    requeue: Requeue = True,
    container: Container = None,
    python: Python = None,
    setup: Setup = None,
    sbatch: Sbatch = None,
    job_name: Name = None,
    logs: Logs = Path("slurm"),
    dry_run: DryRun = False,
) -> None:
    """Build shards by a job array; all other arguments are `gaguide data build`'s: --source … --output DIR"""
    request = _request(
        "data", context, job_name, python, container,
        parts=parts, cpus_per_rank=cpus_per_rank, memory=memory, time=time, partition=partition,
        account=account, qos=qos, requeue=requeue, setup=tuple(setup or ()), options=tuple(sbatch or ()),
    )  # fmt: skip
    _hand_in(request, _data_faults, logs, dry_run)


def _request(
    kind: Kind,
    context: typer.Context,
    name: str | None,
    python: str | None,
    container: Path | None,
    **given: object,
) -> Request:
    from gaguide.slurm import Request

    python = python or ("python" if container else sys.executable)
    arguments = tuple(context.args)
    return Request(kind, name or f"gaguide-{kind}", arguments, python=python, container=container, **given)  # type: ignore[arg-type]


def _hand_in(request: Request, look: Callable[[Request], list[Fault]], logs: Path, dry_run: bool) -> None:
    """All faults of the job and of what it would run at once, before anything waits in a queue."""
    import shlex

    from gaguide.errors import UserError
    from gaguide.slurm import prepare, submit, waits_for

    faults = request.faults()
    faults += look(request)
    if faults:
        raise UserError(faults)
    prepared = prepare(request, logs)
    if dry_run:
        typer.echo(prepared.script)
        typer.echo(f"# would be written to {prepared.path}, then:")
        for at in range(prepared.chain):
            typer.echo(f"# {shlex.join(prepared.command('PREVIOUS' if at else None))}")
        return
    for job in submit(prepared):
        waits = waits_for(job)
        typer.echo(f"job {job}{f' waits ({waits})' if waits else ''}: squeue --job {job}; scancel {job}")
    typer.echo(f"script {prepared.path}; its log appears beside it")


def _train_faults(request: Request) -> list[Fault]:
    from gaguide.config import plan_batch
    from gaguide.engine.config import load_deepspeed_json
    from gaguide.errors import UserError
    from gaguide.train.command import read_arguments

    faults: list[Fault] = []

    def check_batch() -> None:
        run, _, _ = read_arguments(request.arguments)
        plan_batch(run.train.global_batch, run.train.micro_batch, request.world_size)

    def check_deepspeed() -> None:
        # By itself: a mistake in the run's settings does not hide one here.
        for word, following in zip(request.arguments, [*request.arguments[1:], ""]):
            option, equals, value = word.partition("=")
            if option == "--deepspeed":
                load_deepspeed_json(Path(value if equals else following))

    for check in (check_batch, check_deepspeed):
        try:
            check()
        except UserError as error:
            faults += error.faults
    return faults


def _evaluate_faults(request: Request) -> list[Fault]:
    from gaguide.errors import UserError
    from gaguide.evaluate.command import parser

    try:
        parser().parse_args(request.arguments)
    except UserError as error:
        return list(error.faults)
    return []


def _data_faults(request: Request) -> list[Fault]:
    import click

    from gaguide.cli.data import build_command
    from gaguide.errors import Fault

    alone = typer.Typer()
    alone.command()(build_command)
    try:
        parsed = typer.main.get_command(alone).make_context("gaguide data build", list(request.arguments))
    except click.exceptions.ClickException as error:
        return [Fault("arguments", error.format_message(), "see gaguide data build --help")]
    remedy = "leave it out: the job array sets it"
    given = {"--part": parsed.params["part"], "--workers": parsed.params["workers"]}
    return [
        Fault(name, "is not for you to give here", remedy, value) for name, value in given.items() if value
    ]
