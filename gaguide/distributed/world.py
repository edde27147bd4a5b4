"""The rank of this process under any launcher, its process group, and its exit."""

from __future__ import annotations

import atexit
import os
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn

from gaguide.distributed.launcher import check_hostfile
from gaguide.distributed.network import gloo_interface
from gaguide.distributed.rendezvous import expand_hosts, rendezvous
from gaguide.errors import Fault, UserError

if TYPE_CHECKING:
    import torch

# (rank, world size, local rank) as each launcher names them, in the order of precedence.
_LAUNCHER_VARIABLES = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),  # deepspeed, torchrun
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),  # Open MPI
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),  # MPICH, Intel MPI
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),  # srun
)


@dataclass(frozen=True)
class World:
    """This process among all ranks of the job."""

    rank: int = 0
    """Global rank, in [0, size)."""
    size: int = 1
    """Number of ranks."""
    local_rank: int = 0
    """Rank within this host, from 0."""
    host: str = "localhost"
    """Name of this host."""

    @property
    def is_main(self) -> bool:
        """Whether this is global rank 0, which prints and writes shared files."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """The GPU of this local rank if there is one, else the CPU."""
        import torch

        return torch.device("cuda", self.local_rank) if torch.cuda.is_available() else torch.device("cpu")

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> World:
        """From the launcher's variables; a plain `python script.py` is a world of one.

        Raises a `UserError` where a variable is not a number.
        """
        environ = os.environ if environ is None else environ
        host = socket.gethostname()
        for rank, size, local_rank in _LAUNCHER_VARIABLES:
            # Slurm sets SLURM_PROCID in interactive and batch shells too; only srun sets a step id.
            if rank == "SLURM_PROCID" and "SLURM_STEP_ID" not in environ:
                continue
            if rank in environ and size in environ:
                if local_rank not in environ:  # srun --mpi=pmi2 sets PMI_RANK and PMI_SIZE only
                    local_rank = "SLURM_LOCALID"
                numbers = [_number(name, environ.get(name, "0")) for name in (rank, size, local_rank)]
                return cls(numbers[0], numbers[1], numbers[2], host)
        return cls(host=host)


def start(world: World, timeout_minutes: float = 30) -> None:
    """Create the default process group (NCCL with GPUs, else gloo), for a world of one too.

    DeepSpeed uses an existing group. `timeout_minutes` bounds how long a collective waits for a lost rank.
    Raises a `UserError` where the ranks cannot meet or a local rank has no GPU.
    """
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        return
    check_hostfile()
    os.environ.update(rendezvous(os.environ, world.rank, world.size))
    if world.device.type == "cuda" and world.local_rank >= torch.cuda.device_count():
        raise UserError(
            Fault(
                "LOCAL_RANK",
                f"host {world.host} has {torch.cuda.device_count()} GPUs",
                "start at most one rank for each GPU",
                world.local_rank,
            )
        )
    # DeepSpeed and transformers read these names whatever the launcher sets.
    os.environ.update(RANK=str(world.rank), WORLD_SIZE=str(world.size), LOCAL_RANK=str(world.local_rank))
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
    else:
        _choose_interface(world)
    dist.init_process_group(
        "nccl" if world.device.type == "cuda" else "gloo",
        rank=world.rank,
        world_size=world.size,
        timeout=timedelta(minutes=timeout_minutes),
    )


def _choose_interface(world: World) -> None:
    """Set the interface that other hosts reach, where gloo would choose loopback."""
    others = [os.environ["MASTER_ADDR"]]
    with suppress(ValueError):
        others += expand_hosts(os.environ.get("SLURM_STEP_NODELIST", ""))
    interface = gloo_interface(os.environ, others) if world.size > 1 else None
    if interface is not None:
        os.environ["GLOO_SOCKET_IFNAME"] = interface
        if world.local_rank == 0:
            reason = f"the name of host {world.host} is a loopback address to itself"
            print(f"{reason}: gloo uses {interface} (GLOO_SOCKET_IFNAME to choose)", flush=True)


def _number(name: str, text: str) -> int:
    if not text.isdigit():
        raise UserError(
            Fault(name, "must be a whole number", "start the ranks through a launcher, which sets it", text)
        )
    return int(text)


def stop() -> None:
    """Destroy the process group, if there is one."""
    if "torch" not in sys.modules:
        return
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def leave(code: int) -> NoReturn:
    """Exit with `code` after the process group and `atexit` functions, without finalizing the interpreter.

    Finalizing aborted finished runs twice under load, with -6 ("terminate called without an active
    exception"), which fails the whole job: CPython ends any thread that asks for its lock meanwhile, as
    gloo's threads do when they free a tensor, and a thread that ends inside a destructor aborts the process.
    """
    stop()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # its reader is gone, or it is closed
            stream.flush()
    os._exit(code)


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` reports that a device ran out of memory; on the CPU only its text says so."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
