"""DeepSpeed's compiled ops, AdamW on the CPU and asynchronous files: compiled at first use, then cached.

A compile that was killed leaves a file `lock` in the cache, on which every later start waits silently and
forever; so the cache is searched for it before anything is compiled.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType

from gaguide.errors import Fault, UserError, first_line
from gaguide.log.console import say

_BUILDERS = {"cpu_adam": "CPUAdamBuilder", "async_io": "AsyncIOBuilder", "pin_memory": "PinMemoryBuilder"}
COMPILED_OPS = tuple(_BUILDERS)
"""Names of the ops that training may compile; DeepSpeed's others are never built (engine/build.py)."""
_PROBED = ("CPUAdamBuilder", "AsyncIOBuilder", "FusedAdamBuilder")
_BUILD_ERRORS = (RuntimeError, ImportError, OSError, ValueError, subprocess.SubprocessError, AttributeError)
_ARCHITECTURES = "TORCH_CUDA_ARCH_LIST"
_SECONDS_FOR_ANOTHER_HOST = 240.0


def extension_cache() -> Path:
    """The folder where torch keeps compiled extensions."""
    own = os.environ.get("TORCH_EXTENSIONS_DIR")
    if own:
        return Path(own)
    # torch uses XDG_CACHE_HOME, else the home folder.
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch_extensions"


def stale_locks(cache: Path, op: str = "*") -> tuple[list[Path], list[Path]]:
    """All locks in the cache, and those among them that no process of this host holds open."""
    locks = sorted({*cache.glob(f"{op}/lock"), *cache.glob(f"*/{op}/lock")})
    held = _open_files() if locks else set()
    return locks, [lock for lock in locks if lock.exists() and str(lock.resolve()) not in held]


def _open_files() -> set[str]:
    """Paths of all open files visible to this user; a process that compiles keeps its lock open."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            found.add(str(link.readlink()))
        except OSError:
            continue
    return found


def load_op(name: str, several_hosts: bool = False) -> ModuleType:
    """The op `cpu_adam`, `async_io` or `pin_memory`, compiled if need be; waits for ranks that compile it.

    Raises a `UserError` where it cannot be built here, or a stale lock blocks it.
    """
    from deepspeed.accelerator import get_accelerator

    _wait_for_lock(name, several_hosts)
    builder = get_accelerator().create_op_builder(_BUILDERS[name])
    if builder is None:
        raise UserError(_unbuilt(name, "this accelerator has no such op"))
    if not any(extension_cache().glob(f"**/{name}/{name}.so")) and os.environ.get("LOCAL_RANK", "0") == "0":
        say(f"compiling DeepSpeed's {name}: this takes a minute or two, once per machine")
    try:
        with redirect_stdout(StringIO()), _plain_architectures():  # torch prints its progress
            op: ModuleType = builder.load(verbose=False)
            return op
    except _BUILD_ERRORS as error:
        reason = first_line(error)
        raise UserError(_unbuilt(name, reason)) from None


@contextmanager
def _plain_architectures() -> Iterator[None]:
    """Inside, no architecture in TORCH_CUDA_ARCH_LIST has a letter, as in 9.0a, which DeepSpeed cannot parse.

    The ops compiled here contain no GPU code.
    """
    named = os.environ.get(_ARCHITECTURES)
    if named is not None:
        os.environ[_ARCHITECTURES] = re.sub(r"(?<=\d)[a-z]", "", named)
    try:
        yield
    finally:
        if named is not None:
            os.environ[_ARCHITECTURES] = named


def cpu_adam_or_fallback(several_hosts: bool) -> bool:
    """Whether DeepSpeedCPUAdam is ready; if not, reports that torch's AdamW takes its place."""
    try:
        load_op("cpu_adam", several_hosts)
        importlib.import_module("deepspeed.ops.adam")
        return True
    except UserError as error:
        problem = error.faults[0]
        if problem.field.endswith("lock"):
            raise  # otherwise a later start would fall back or hang, by chance
        if os.environ.get("LOCAL_RANK", "0") == "0":
            say(f"{problem.problem}: the offloaded optimizer is torch's AdamW on the CPU")
        return False


def _unbuilt(name: str, reason: str) -> Fault:
    needs = {
        "cpu_adam": "install a C++ compiler (apt-get install g++) and Python's headers",
        "async_io": "apt-get install libaio-dev g++, or use ds_configs/zero3_offload.json",
    }
    return Fault(f"DeepSpeed's op {name}", f"{name} cannot be built here ({reason})", needs[name])


def _wait_for_lock(name: str, several_hosts: bool) -> None:
    """Return as soon as there is no stale lock; another host's compile releases its lock within minutes."""
    until = time.monotonic() + (_SECONDS_FOR_ANOTHER_HOST if several_hosts else 0)
    while stale := stale_locks(extension_cache(), name)[1]:
        if time.monotonic() >= until:
            raise UserError.of(
                f"{extension_cache()}: lock",
                f"was left by a compile of {name} that was killed; DeepSpeed would wait on it forever",
                f"unless another host is compiling into this folder: rm {stale[0]}",
                str(stale[0]),
            )
        time.sleep(1)


def compatible_ops(gpu: bool) -> dict[str, bool]:
    """Whether each op that training may use can be built here, by name; GPU ops only where `gpu`."""
    from deepspeed.ops import op_builder

    builders = [getattr(op_builder, name, None) for name in _PROBED if gpu or name != "FusedAdamBuilder"]
    return {each.NAME: bool(each().is_compatible(verbose=False)) for each in builders if each is not None}
