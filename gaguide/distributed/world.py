"""The identity of this process: rank, local rank, world size, from whichever launcher started it."""

from __future__ import annotations

import atexit
import os
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist

from gaguide.distributed.launcher import check_hostfile
from gaguide.distributed.network import gloo_interface
from gaguide.distributed.rendezvous import expand_hosts, rendezvous
from gaguide.errors import Fault, UserError

# (rank, world size, local rank) as each launcher spells them, in the order they are asked.
_LAUNCHER_VARIABLES = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),  # deepspeed, torchrun
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),  # Open MPI
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),  # MPICH, Intel MPI
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),  # srun
)


@dataclass(frozen=True)
class World:
    """This process among all of them. `rank` in [0, size), `local_rank` counts within one host."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    host: str = "localhost"

    @property
    def is_main(self) -> bool:
        """True on global rank 0, the one that prints and writes shared files."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """The accelerator of this local rank where there is one, else the CPU."""
        return torch.device("cuda", self.local_rank) if torch.cuda.is_available() else torch.device("cpu")

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> World:
        """Read the launcher's variables; a bare `python script.py` is a world of one."""
        environ = os.environ if environ is None else environ
        host = socket.gethostname()
        for rank, size, local_rank in _LAUNCHER_VARIABLES:
            # An interactive Slurm shell sets SLURM_PROCID in a plain process too; a step id marks srun.
            if rank == "SLURM_PROCID" and "SLURM_STEP_ID" not in environ:
                continue
            if rank in environ and size in environ:
                if local_rank not in environ:  # srun --mpi=pmi2 sets the others of MPICH's
                    local_rank = "SLURM_LOCALID"
                numbers = [_number(name, environ.get(name, "0")) for name in (rank, size, local_rank)]
                return cls(numbers[0], numbers[1], numbers[2], host)
        return cls(host=host)


def start(world: World, timeout_minutes: float = 30) -> None:
    """Make the default process group (NCCL with GPUs, else gloo), also for a world of one.

    DeepSpeed takes the group that it finds. The timeout bounds how long a rank waits for a lost peer.
    """
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
    # DeepSpeed and transformers read these even where another launcher's spelling was used.
    os.environ.update(RANK=str(world.rank), WORLD_SIZE=str(world.size), LOCAL_RANK=str(world.local_rank))
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
    else:
        _name_interface(world)
    dist.init_process_group(
        "nccl" if world.device.type == "cuda" else "gloo",
        rank=world.rank,
        world_size=world.size,
        timeout=timedelta(minutes=timeout_minutes),
    )


def _name_interface(world: World) -> None:
    """Tell gloo the interface that other hosts reach, where it would choose loopback."""
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
        raise UserError(Fault(name, "is no number", "the launcher sets it: start through one", text))
    return int(text)


def stop() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def leave(code: int) -> NoReturn:
    """End this process of a launcher with `code`: what is registered for its end runs, the interpreter stays.

    Seen twice under load, a run that had ended well left with -6 ("terminate called without an active
    exception"), which fails the whole job. While Python takes itself down, it ends any thread that asks for
    its lock, as gloo's do where they let go of a tensor, and a thread that is ended inside a destructor takes
    the process with it.
    """
    stop()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads any more, or it is closed
            stream.flush()
    os._exit(code)


def out_of_memory(error: BaseException) -> bool:
    """Whether a device had too little memory; a CPU's allocator has no exception of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
