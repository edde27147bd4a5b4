"""Checks that may hang, print or abort, and so run in a child process.

A probe answers by writing a JSON file; at the deadline it is killed with its children. The child is
`python -m gaguide.doctor.probes NAME ANSWER …`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

# Longer than any deadline: on a busy machine the second rank may start late, which is not a failure.
_RENDEZVOUS = timedelta(minutes=10)


class Probes:
    """Running probes. Leaving the block kills those that have not ended."""

    def __init__(self, deadline_seconds: float) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="gaguide-doctor-")
        self._until = time.monotonic() + deadline_seconds
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Probes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._children.values():
            _end(child)
        self._folder.cleanup()

    def start(self, name: str, *arguments: str, key: str | None = None) -> None:
        """Start the probe `name`; `key` distinguishes several probes of the same name."""
        key = key or name
        self._children[key] = subprocess.Popen(
            [sys.executable, "-m", __name__, name, str(self._answer_path(key)), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=(Path(self._folder.name) / f"{key}.err").open("wb"),
            start_new_session=True,
        )

    def answer(self, key: str, part: str | None = None) -> dict[str, Any]:
        """Wait for the answer of a probe, or of its `part`: its JSON, {"error": text} or {"late": True}."""
        child, path = self._children[key], self._answer_path(part or key)
        while not path.exists() and child.poll() is None and time.monotonic() < self._until:
            time.sleep(0.02)
        if path.exists():
            return dict(json.loads(path.read_text("utf-8")))
        if child.poll() is None:
            return {"late": True}
        lines = (Path(self._folder.name) / f"{key}.err").read_text("utf-8", "replace").strip().splitlines()
        return {"error": lines[-1] if lines else f"ended with code {child.returncode}"}

    def _answer_path(self, key: str) -> Path:
        return Path(self._folder.name) / f"{key}.json"


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill a child and its children: it is the leader of a session."""
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _write(path: Path, answer: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(answer), "utf-8")
    temporary.replace(path)


def _gloo(path: Path, rank: str, port: str) -> None:
    """One of two ranks that connect on loopback and add 1 and 2."""
    import torch
    import torch.distributed as dist

    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=int(rank), world_size=2, timeout=_RENDEZVOUS
    )
    total = torch.tensor([int(rank) + 1])
    dist.all_reduce(total)
    _write(path, {"sum": int(total)})
    dist.destroy_process_group()


def _torch(path: Path, busy: str = "") -> None:
    """Write torch's findings on accelerator and NCCL; then, to ops.json, which ops DeepSpeed can compile.

    busy: only count devices, which does not use their memory.
    """
    import torch

    found: dict[str, Any] = {"cuda_build": torch.version.cuda, "hip_build": torch.version.hip, "devices": []}
    if busy:
        found["count"] = torch.cuda.device_count()
    elif torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            found["devices"].append({"name": properties.name, "gib": properties.total_memory / 2**30})
        found["bf16"] = torch.cuda.is_bf16_supported()
        found["nccl"] = _nccl_sum()
    _write(path, found)
    from gaguide.engine.ops import compatible_ops

    _write(path.with_name("ops.json"), compatible_ops(gpu=bool(found["devices"])))


def _nccl_sum() -> dict[str, str]:
    """`version` of NCCL if it can sum on the first device, else `error`, the reason."""
    import torch
    import torch.distributed as dist

    if not dist.is_nccl_available():
        return {"error": "this torch has no NCCL"}
    try:
        with tempfile.TemporaryDirectory() as folder:
            store = f"file://{folder}/store"
            dist.init_process_group("nccl", init_method=store, rank=0, world_size=1)
            total = torch.ones(1, device="cuda:0")
            dist.all_reduce(total)
            torch.cuda.synchronize()
            dist.destroy_process_group()
    except Exception as error:  # the type depends on the version of NCCL
        return {"error": str(error)}
    return {"version": ".".join(map(str, torch.cuda.nccl.version()))}


def _mpi(path: Path) -> None:
    """Write which MPI library mpi4py finds; loading it may abort the process."""
    from mpi4py import MPI

    _write(path, {"library": MPI.Get_library_version().splitlines()[0].strip("\x00 ")})


if __name__ == "__main__":
    probes: dict[str, Callable[..., None]] = {"gloo": _gloo, "torch": _torch, "mpi": _mpi}
    probes[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
