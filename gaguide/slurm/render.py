"""A job's script: the template of launch/slurm with its directives and variables filled in. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from gaguide.slurm.request import Request

_DIRECTIVE = "#SBATCH --"


def render(template: str, request: Request, repository: Path, folder: Path, ended: Path | None = None) -> str:
    """The script of `request`, complete in itself: `sbatch FILE` is all it takes.

    repository: where launch/ is. folder: for the job's log. ended: a file that tells the later jobs of a
    chain that nothing is left to do.
    """
    made = _directives(template, directives(request, folder))
    setup = [f"    {line}" for line in request.setup] or ["    :"]
    variables = {
        "program": shlex.quote(str(repository / "launch" / f"{request.kind}.py")),
        "arguments": _array(request.arguments),
        "python": shlex.quote(request.python),
        "container": _array(_container(request, repository)),
        "ended": shlex.quote(str(ended)) if ended else "",
        "parts": str(request.parts),
        "setup": "\n".join(["{", *(f"{line} || return" for line in setup), "}"]),
    }
    for name, value in variables.items():
        pattern = re.compile(rf"^{name}=.*$" if name != "setup" else r"^setup\(\) \{.*\}$", re.MULTILINE)
        line = f"{name}={value}" if name != "setup" else f"setup() {value}"
        made = pattern.sub(lambda _, line=line: line, made, count=1)  # type: ignore[misc]
    return made


def directives(request: Request, folder: Path) -> dict[str, str | None]:
    """sbatch's options without the dashes, None for those without a value; the rest stays the template's."""
    array = request.kind == "data"
    found: dict[str, str | None] = {
        "job-name": request.name,
        "nodes": str(request.nodes),
        "ntasks-per-node": str(request.tasks_per_node),
        "time": request.time,
        "chdir": str(Path.cwd()),
        "output": str(folder / ("%x-%A-%a.log" if array else "%x-%j.log")),
        "requeue" if request.requeue else "no-requeue": None,
    }
    if array:
        found["array"] = f"1-{request.parts}"
    if request.kind == "train":
        found["signal"] = f"USR1@{request.signal_seconds}"
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


def _directives(template: str, given: Mapping[str, str | None]) -> str:
    """The template with its block of directives replaced by `given` over its own."""
    lines = template.splitlines()
    at = [number for number, line in enumerate(lines) if line.startswith(_DIRECTIVE)]
    merged: dict[str, str | None] = {}
    for number in at:
        name, equals, value = lines[number].removeprefix(_DIRECTIVE).partition("=")
        merged[name] = value if equals else None
    if "no-requeue" in given:
        merged.pop("requeue", None)
    merged |= given
    return "\n".join([*lines[: at[0]], *block(merged), *lines[at[-1] + 1 :]]) + "\n"


def block(options: Mapping[str, str | None]) -> list[str]:
    """The lines of a script that give sbatch these options; it splits them as a shell would."""
    return [
        _DIRECTIVE + name + (f"={_quoted(value)}" if value is not None else "")
        for name, value in options.items()
    ]


def _quoted(value: str) -> str:
    return f'"{value}"' if " " in value else value


def _array(words: tuple[str, ...]) -> str:
    return f"({shlex.join(words)})"


def _container(request: Request, repository: Path) -> tuple[str, ...]:
    """Apptainer before the program; it passes SLURM_* on, and binds the home and current folders itself."""
    if request.container is None:
        return ()
    # GPUs may have been asked for in sbatch's own words: --gres=gpu:a100:4.
    nvidia = ("--nv",) if request.gpus_per_node or any("gpu" in each for each in request.options) else ()
    return ("apptainer", "exec", *nvidia, "--bind", str(repository), str(request.container.resolve()))
