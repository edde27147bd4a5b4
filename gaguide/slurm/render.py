"""Renders a job's script from its template in launch/slurm.

A template also works without being rendered: `sbatch launch/slurm/train.sbatch ARGUMENTS`. Its `settings`
block, marked by comments that are Jinja line statements, holds the lines that a user would edit, and
settings.sbatch replaces it. Every value is quoted for the shell where it is inserted, as autoescape does
for HTML.
"""

from __future__ import annotations

import shlex
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from gaguide.shipped import SLURM_TEMPLATES, root
from gaguide.slurm.request import JobRequest


class Verbatim(str):
    """Text that is inserted into a script without quoting."""


def render(request: JobRequest, logs: Path, ended: Path | None = None) -> str:
    """The complete script of `request`, ready for `sbatch FILE`.

    logs: folder for the job's log. ended: file by which a job of a chain signals that nothing is left to do.
    """
    variables: dict[str, object] = {
        "arguments": request.arguments,
        "python": request.python,
        "container": _container(request),
    }
    if request.kind in ("train", "cell"):
        variables |= {"output": request.output or Verbatim(), "logs": logs}
        variables["max_restarts"] = request.max_restarts
    if request.kind == "train":
        variables["ended"] = ended or Verbatim()
    if request.kind == "data":
        variables["parts"] = request.parts
    return (
        _environment()
        .get_template("settings.sbatch")
        .render(
            template=f"{request.kind}.sbatch",
            directives=[_directive(*each) for each in directives(request, logs).items()],
            variables={Verbatim(name): value for name, value in variables.items()},
            setup=[Verbatim(line) for line in request.setup],
        )
    )


def directives(request: JobRequest, logs: Path) -> dict[str, str | None]:
    """sbatch's long options by name, without dashes; None for options that take no value."""
    array = request.kind == "data"
    found: dict[str, str | None] = {
        "job-name": request.name,
        "nodes": str(request.nodes),
        "ntasks-per-node": str(request.tasks_per_node),
        "time": request.time,
        "chdir": str(Path.cwd()),
        "output": str(logs / ("%x-%A-%a.log" if array else "%x-%j.log")),
        "open-mode": "append",
        "requeue" if request.requeue else "no-requeue": None,
    }
    if array:
        found["array"] = f"1-{request.parts}" + (f"%{request.max_running}" if request.max_running else "")
    if request.kind == "train":
        found["signal"] = f"USR1@{request.signal_seconds}"
    if request.kind == "cell":  # only the batch shell gets the signal: it ends the cell
        found["signal"] = f"B:TERM@{request.signal_seconds}"
    optional = {
        "partition": request.partition,
        "account": request.account,
        "qos": request.qos,
        "gpus-per-node": request.gpus_per_node,
        "cpus-per-task": request.cpus_per_rank,
        "mem": request.memory,
    }
    found |= {name: str(value) for name, value in optional.items() if value is not None}
    for option in request.options:
        name, equals, value = option.removeprefix("--").partition("=")
        found[name] = value if equals else None
    return found


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(root() / SLURM_TEMPLATES.folder),
        undefined=StrictUndefined,
        finalize=_quoted,
        line_statement_prefix="#%",
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _quoted(value: Any) -> Any:
    """A value as a word of the shell; a tuple as an array."""
    if isinstance(value, tuple):
        return f"({shlex.join(value)})"
    if isinstance(value, (str, Path)) and not isinstance(value, Verbatim):
        return shlex.quote(str(value))
    return value


def _directive(name: str, value: str | None) -> Verbatim:
    # sbatch splits the line as a shell would, but knows no other expansions.
    text = f'"{value}"' if value is not None and " " in value else value
    return Verbatim(name if text is None else f"{name}={text}")


def _container(request: JobRequest) -> tuple[str, ...]:
    """The words before the program that run it in a container; both runtimes pass SLURM_* on."""
    if request.container is None:
        return ()
    runtime, image = request.container_runtime, request.container
    if runtime == "pyxis":
        # Options of srun. Its containers see only the named folders of the host.
        mounts = ",".join(mount if ":" in mount else f"{mount}:{mount}" for mount in request.all_mounts)
        options = (
            f"--container-image={Path(image).resolve() if Path(image).exists() else image}",
            f"--container-mounts={mounts}",
            f"--container-workdir={Path.cwd()}",
        )
        # Templates that start the program without srun need it for its options.
        return options if request.kind in ("train", "evaluate") else ("srun", "--ntasks=1", *options)
    # GPUs may also have been requested by an option of sbatch: --gres=gpu:a100:4.
    has_gpus = request.gpus_per_node or any("gpu" in option for option in request.options)
    binds = [word for mount in request.mounts for word in ("--bind", mount)]
    return ("apptainer", "exec", *(("--nv",) if has_gpus else ()), *binds, str(Path(image).resolve()))
