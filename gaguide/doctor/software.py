"""Checks of the Python environment: versions, compiler, launchers, MPI, DeepSpeed's compiled ops."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from gaguide.doctor.check import Check, fail, ok, warn
from gaguide.engine.ops import COMPILED_OPS, extension_cache, stale_locks

_MAIN = ("torch", "deepspeed", "transformers")
_PROGRAM = "#include <vector>\nint main() { return std::vector<int>{0}[0]; }\n"


def python() -> Check:
    """The version of this interpreter against the range that the project declares."""
    wanted = metadata.metadata("gaguide")["Requires-Python"]
    if platform.python_version() in SpecifierSet(wanted, prereleases=True):
        return ok("python", f"{platform.python_version()} ({sys.executable})")
    return fail("python", platform.python_version(), f"create an environment with Python {wanted}")


def packages() -> Iterator[Check]:
    """Installed versions against the ranges that the project declares."""
    wrong, right = [], 0
    for line in metadata.requires("gaguide") or ():
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            version = None
        fits = version is not None and requirement.specifier.contains(version, prereleases=True)
        remedy = f"pip install '{requirement.name}{requirement.specifier}'"
        if requirement.name in _MAIN:
            found = version or "not installed"
            yield (
                ok(requirement.name, found)
                if fits
                else fail(requirement.name, f"{found}, not in {requirement.specifier}", remedy)
            )
        elif fits:
            right += 1
        else:
            wrong.append((f"{requirement.name} {version or 'not installed'}", remedy))
    if wrong:
        found = ", ".join(name for name, _ in wrong)
        yield fail("other packages", f"out of range: {found}", "; ".join(remedy for _, remedy in wrong))
    else:
        yield ok("other packages", f"{right} in range")


def compiler() -> Check:
    """A working C++ compiler and Python's headers, with which DeepSpeed compiles ops at first use."""
    name = os.environ.get("CXX") or "c++"
    remedy = "apt-get install g++ (or: module load gcc), or set CXX to a C++17 compiler"
    if shutil.which(name.split()[0]) is None:
        return fail("compiler", f"no {name} on PATH", remedy)
    tried = subprocess.run(
        [*name.split(), "-std=c++17", "-fsyntax-only", "-x", "c++", "-"],
        input=_PROGRAM,
        text=True,
        capture_output=True,
        timeout=8,
    )
    if tried.returncode:
        reason = (tried.stderr.strip().splitlines() or ["no message"])[0]
        return fail("compiler", f"{name} cannot compile C++17 ({reason})", remedy)
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return warn("compiler", f"{name}, but no Python.h", "for offload: apt-get install python3-dev")
    return ok("compiler", f"{shutil.which(name.split()[0])}, C++17, Python.h")


def programs() -> Iterator[Check]:
    """ninja, which torch calls by name to compile, and the launchers."""
    activate = f"source {shlex.quote(str(Path(sys.executable).parent / 'activate'))}"
    for name, program in (("ninja", "ninja"), ("deepspeed launcher", "deepspeed")):
        beside = Path(sys.executable).parent / program
        if path := shutil.which(program):
            yield ok(name, path)
        elif not beside.exists():
            yield fail(name, f"no {program} on PATH", f"pip install {program}")
        elif program == "ninja":
            yield fail(name, f"installed, but {beside.parent} is not on PATH", activate)
        else:
            yield warn(name, f"{beside}, not on PATH", activate)
    if path := shutil.which("pdsh"):
        yield ok("pdsh", path)
    else:
        yield warn("pdsh", "not on PATH", "only for `deepspeed --hostfile`: apt-get install pdsh")


def slurm() -> Check:
    """Whether a Slurm controller answers; Slurm is optional."""
    if shutil.which("sinfo") is None:
        return ok("slurm", "not installed (optional)")
    job = os.environ.get("SLURM_JOB_ID")
    tried = subprocess.run(
        ["sinfo", "--noheader", "--format=%P %D"], text=True, capture_output=True, timeout=4
    )
    if tried.returncode:
        reason = (tried.stderr.strip().splitlines() or ["no message"])[0]
        return warn(
            "slurm",
            f"installed, but its controller does not answer ({reason})",
            "ask the cluster's administrators",
        )
    found = ", ".join(tried.stdout.split("\n")).strip(", ")
    return ok("slurm", f"partitions and nodes: {found}" + (f"; in job {job}" if job else ""))


def mpi(answer: dict[str, Any]) -> Check:
    """Whether mpi4py loads an MPI library and its launcher is installed."""
    launcher = shutil.which("mpirun") or shutil.which("mpiexec")
    remedy = "only for MPI jobs: apt-get install openmpi-bin libopenmpi-dev, then pip install mpi4py"
    if "library" in answer:
        if launcher:
            return ok("mpi", f"{answer['library']}; {launcher}")
        return warn("mpi", f"{answer['library']}, but no mpirun on PATH", remedy)
    if answer.get("late"):
        return warn(
            "mpi",
            "loading the MPI library does not end",
            "pip uninstall mpi4py, or repair the MPI installation",
        )
    missing = "ModuleNotFoundError" in answer["error"]
    reason = "mpi4py is not installed" if missing else f"mpi4py cannot be loaded ({answer['error']})"
    return warn("mpi", reason + (f"; {launcher}" if launcher else "; no mpirun on PATH"), remedy)


_OPS = {
    "cpu_adam": ("optimizer offload to CPU or disk", "install a C++ compiler and Python headers (see above)"),
    "async_io": ("offload to disk (NVMe)", "apt-get install libaio-dev"),
    "fused_adam": (
        "DeepSpeed's fused AdamW",
        "install torch's version of the CUDA toolkit (module load cuda)",
    ),
}


def ops(answer: dict[str, Any]) -> Iterator[Check]:
    """Which of DeepSpeed's ops can be compiled here. `answer` is the part `ops` of the probe `torch`."""
    if answer.get("late"):
        yield warn("deepspeed ops", "no answer in time (a busy machine?)", "run ds_report")
        return
    if "error" in answer:
        yield fail(
            "deepspeed ops", f"deepspeed cannot be imported ({answer['error']})", "pip install deepspeed"
        )
        return
    for name, compatible in answer.items():
        use, remedy = _OPS.get(name, ("a DeepSpeed op", "run ds_report"))
        if compatible:
            yield ok(f"op {name}", f"can be compiled ({use})")
        else:
            yield warn(f"op {name}", "cannot be compiled", f"only for {use}: {remedy}")


def extension_locks(cache: Path | None = None) -> Check:
    """Locks that a killed compile left behind, on which every later start would wait silently and forever.

    Only those of ops that gaguide compiles count.
    """
    cache = cache or extension_cache()
    name = "compiled ops' cache"
    locks: list[Path] = []
    stale: list[Path] = []
    for op in COMPILED_OPS:
        all_locks, stale_ones = stale_locks(cache, op)
        locks += all_locks
        stale += stale_ones
    if not locks:
        return ok(name, f"{cache}: no lock left behind")
    if not stale:
        return ok(name, f"{cache}: an op is being compiled right now")
    return fail(
        name,
        f"no process of this machine holds: {', '.join(map(str, stale))}",
        "unless another host is compiling into this folder: rm " + shlex.join(map(str, stale)),
    )
