"""`gaguide submit train | evaluate | data`: runs the commands of these names as Slurm jobs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gaguide.cli.options import takes

if TYPE_CHECKING:
    from gaguide.errors import Fault
    from gaguide.slurm import JobKind, JobRequest

app = typer.Typer(no_args_is_help=True, help="Run a command as a Slurm job.")
_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


@dataclass(frozen=True)
class HostOptions:
    """Options of jobs that run on several hosts, under the names of `JobRequest`."""

    nodes: Annotated[int, typer.Option(help="Number of hosts.")] = 1
    gpus_per_node: Annotated[
        int | None, typer.Option(help="GPUs of each host, one rank each.", show_default="none")
    ] = None
    ranks_per_node: Annotated[
        int | None, typer.Option(help="Ranks on each host.", show_default="one per GPU, else one")
    ] = None
    cpus_per_rank: Annotated[
        int | None, typer.Option(help="Cores of each rank.", show_default="the cluster's")
    ] = None


@dataclass(frozen=True)
class JobOptions:
    """Options of all jobs, under the names of `JobRequest` apart from `sbatch` and `job_name`."""

    memory: Annotated[str | None, typer.Option(help="Memory of each host, such as 64G; 0 is all of it.")] = (
        None
    )
    time: Annotated[str, typer.Option(help="Time limit, HOURS:MINUTES:SECONDS or DAYS-HOURS.")] = "12:00:00"
    partition: Annotated[str | None, typer.Option(help="Partition (queue); `sinfo` lists them.")] = None
    account: Annotated[str | None, typer.Option(help="Account to charge.")] = None
    qos: Annotated[str | None, typer.Option(help="Quality of service.")] = None
    requeue: Annotated[
        bool,
        typer.Option(
            "--requeue/--no-requeue",
            help="Requeue after a lost host or a preemption; training also after its time limit.",
        ),
    ] = True
    container: Annotated[
        str | None, typer.Option(help="Image to run in: a file, or with pyxis also a name in a registry.")
    ] = None
    container_runtime: Annotated[
        str, typer.Option(help="Container runtime: apptainer, or pyxis (enroot).")
    ] = "apptainer"
    mount: Annotated[
        list[str] | None,
        typer.Option(help="Folder that the container sees as well, PATH or PATH:INSIDE. Repeatable."),
    ] = None
    python: Annotated[
        str | None, typer.Option(help="Python on the hosts.", show_default="this one; in a container its own")
    ] = None
    setup: Annotated[
        list[str] | None,
        typer.Option(help="Shell command to run first, such as 'module load cuda'. Repeatable."),
    ] = None
    sbatch: Annotated[
        list[str] | None,
        typer.Option(help="Further option of sbatch: --sbatch=--constraint=a100. Repeatable."),
    ] = None
    job_name: Annotated[
        str | None, typer.Option(help="Name in the queue.", show_default="gaguide-COMMAND")
    ] = None
    logs: Annotated[Path, typer.Option(help="Folder for the job's script and logs.")] = Path("slurm")
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the script and the command without submitting.")
    ] = False

    def request(self, kind: JobKind, arguments: list[str]) -> JobRequest:
        """The job that runs `kind` with `arguments`."""
        from gaguide.slurm import JobRequest

        given = asdict(self)
        for name in ("logs", "dry_run"):
            del given[name]
        given |= {
            "name": given.pop("job_name") or f"gaguide-{kind}",
            "python": self.python or ("python" if self.container else sys.executable),
            "setup": tuple(given["setup"] or ()),
            "mounts": tuple(given.pop("mount") or ()),
            "options": tuple(given.pop("sbatch") or ()),
        }
        return JobRequest(kind, arguments=tuple(arguments), **given)


@dataclass(frozen=True)
class TrainOptions(JobOptions, HostOptions):
    """Options of `submit train`."""

    signal_seconds: Annotated[
        int, typer.Option(help="Seconds before the time limit at which the ranks save and end.")
    ] = 180
    chain: Annotated[
        int, typer.Option(help="Jobs that run one after another, for a run longer than the time limit.")
    ] = 1
    max_restarts: Annotated[
        int, typer.Option(help="Restarts in a row without a newer checkpoint after which the job ends.")
    ] = 3


@dataclass(frozen=True)
class EvaluateOptions(JobOptions, HostOptions):
    """Options of `submit evaluate`."""

    time: Annotated[str, typer.Option(help="Time limit, HOURS:MINUTES:SECONDS or DAYS-HOURS.")] = "02:00:00"


@dataclass(frozen=True)
class DataOptions(JobOptions):
    """Options of `submit data`."""

    time: Annotated[str, typer.Option(help="Time limit, HOURS:MINUTES:SECONDS or DAYS-HOURS.")] = "04:00:00"
    parts: Annotated[int, typer.Option(help="Tasks of the job array; each builds its share.")] = 8
    cpus_per_rank: Annotated[int, typer.Option("--cpus", help="Cores, and processes, of each task.")] = 8
    max_running: Annotated[int | None, typer.Option(help="Tasks that run at a time.", show_default="all")] = (
        None
    )


@app.command(context_settings=_PASSED_ON)
@takes(TrainOptions)
def train(options: TrainOptions, context: typer.Context) -> None:
    """Train; all other arguments are those of `gaguide train`: --deepspeed DS.json --config RUN.yaml …"""
    _submit(options.request("train", context.args), _train_faults, options)


@app.command(context_settings=_PASSED_ON)
@takes(EvaluateOptions)
def evaluate(options: EvaluateOptions, context: typer.Context) -> None:
    """Evaluate; all other arguments are those of `gaguide evaluate`: --model DIR --tasks … --output DIR"""
    _submit(options.request("evaluate", context.args), _evaluate_faults, options)


@app.command(context_settings=_PASSED_ON)
@takes(DataOptions)
def data(options: DataOptions, context: typer.Context) -> None:
    """Build shards in a job array; all other arguments are those of `gaguide data build`."""
    _submit(options.request("data", context.args), _data_faults, options)


def _submit(
    request: JobRequest, find_faults: Callable[[JobRequest], list[Fault]], options: JobOptions
) -> None:
    """Submit the job, or print it. Before that, raises the faults of the request and of its command."""
    import shlex
    from dataclasses import replace

    from gaguide.errors import FaultCollector
    from gaguide.slurm import check_array, pending_reason, prepare, submit

    with FaultCollector() as faults:
        faults.add(*request.faults(), *find_faults(request))
        if request.kind == "data" and not options.dry_run:
            faults.attempt(check_array, request.parts)
    if request.kind == "train":
        from gaguide.slurm.output import output_of

        request = replace(request, output=output_of(request.arguments))
    prepared = prepare(request, options.logs)
    if options.dry_run:
        typer.echo(prepared.script)
        typer.echo(f"# would be written to {prepared.path}, then:")
        for at in range(prepared.chain):
            typer.echo(f"# {shlex.join(prepared.command('PREVIOUS' if at else None))}")
        return
    for job in submit(prepared):
        reason = pending_reason(job)
        typer.echo(f"job {job}{f' waits ({reason})' if reason else ''}: squeue --job {job}; scancel {job}")
    typer.echo(f"script {prepared.path}; its log appears in the same folder")


def _train_faults(request: JobRequest) -> list[Fault]:
    from gaguide.config import plan_batch
    from gaguide.engine.config import load_deepspeed_json
    from gaguide.errors import FaultCollector
    from gaguide.train.command import read_arguments

    faults = FaultCollector()
    with faults.catching():
        run, _ = read_arguments(request.arguments)
        plan_batch(run.train.global_batch, run.train.micro_batch, request.world_size)
    # Separately, so that a fault in the run's settings does not hide one in the JSON.
    for word, following in zip(request.arguments, [*request.arguments[1:], ""]):
        option, equals, value = word.partition("=")
        if option == "--deepspeed":
            faults.attempt(load_deepspeed_json, Path(value if equals else following))
    return faults.faults


def _evaluate_faults(request: JobRequest) -> list[Fault]:
    from gaguide.errors import FaultCollector
    from gaguide.evaluate.command import parser

    faults = FaultCollector()
    faults.attempt(parser().parse_args, request.arguments)
    return faults.faults


def _data_faults(request: JobRequest) -> list[Fault]:
    import click

    from gaguide.cli.data import build_command
    from gaguide.errors import Fault

    build = typer.Typer()
    build.command()(build_command)
    try:
        parsed = typer.main.get_command(build).make_context("gaguide data build", list(request.arguments))
    except click.exceptions.ClickException as error:
        return [Fault("arguments", error.format_message(), "see gaguide data build --help")]
    given = {"--part": parsed.params["part"], "--workers": parsed.params["workers"]}
    return [
        Fault(name, "is set by the job array", "leave it out", value)
        for name, value in given.items()
        if value
    ]
