"""The rank of this process under any launcher, its process group, and its exit."""

from __future__ import annotations

import atexit
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn

from gaguide.distributed.launcher import check_hostfile
from gaguide.distributed.network import gloo_interface
from gaguide.distributed.rendezvous import expand_hosts, rendezvous
from gaguide.errors import Fault, UserError
from gaguide.ports import free_port

if TYPE_CHECKING:
    import torch

# (rank, world size, local rank) as each launcher names them, in the order of precedence.
_LAUNCHER_VARIABLES = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),  # deepspeed, torchrun
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),  # Open MPI
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),  # MPICH, Intel MPI
    # srun; the step's number of tasks, because SLURM_NTASKS is the job's in the shell of an interactive
    # allocation, which is a step of one task.
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
)

_RANK_IS_ITS_OWN = ("TORCHELASTIC_RUN_ID", "CROSS_SIZE")
"""torchrun and the deepspeed launcher set these together with RANK."""


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
        """The GPU of this rank if there is one, else the CPU.

        It is the only visible GPU, as under `srun --gpus-per-task`, or that of the local rank.
        """
        import torch

        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", gpu_index(self.local_rank, torch.cuda.device_count()))

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> World:
        """From the launcher's variables; a plain `python script.py` is a world of one.

        Raises a `UserError` where a variable is not a number, or where RANK is left from elsewhere.
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
                if rank == "RANK":
                    _check_left_over(environ, numbers)
                return cls(numbers[0], numbers[1], numbers[2], host)
        return cls(host=host)


def _check_left_over(environ: Mapping[str, str], numbers: Sequence[int]) -> None:
    """Raise a `UserError` where RANK and WORLD_SIZE contradict an MPI launcher or srun that started several.

    Exported in a shell, they would make every process rank 0. Where deepspeed or torchrun run below such a
    launcher, RANK is theirs.
    """
    if any(name in environ for name in _RANK_IS_ITS_OWN):
        return
    for rank, size, _ in _LAUNCHER_VARIABLES[1:4]:
        if rank not in environ or size not in environ or (rank[0] == "S" and "SLURM_STEP_ID" not in environ):
            continue
        found = _number(rank, environ[rank]), _number(size, environ[size])
        if found[1] > 1 and found != tuple(numbers[:2]):
            raise UserError.of(
                "RANK",
                f"says rank {numbers[0]} of {numbers[1]}, but the launcher says rank {found[0]} of "
                f"{found[1]} ({rank}, {size})",
                "unset RANK WORLD_SIZE LOCAL_RANK, which the shell that launches has exported",
                environ["RANK"],
            )


def start(world: World, timeout_minutes: float = 30) -> None:
    """Create the default process group (NCCL with GPUs, else gloo), also for a world of one.

    DeepSpeed uses an existing group. `timeout_minutes` bounds how long a collective waits for a lost rank.
    Raises a `UserError` where the ranks cannot meet or a local rank has no GPU.
    """
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        return
    check_hostfile()
    os.environ.update(rendezvous(os.environ, world.rank, world.size))
    has_gpu = world.device.type == "cuda"
    if has_gpu and world.device.index >= torch.cuda.device_count():
        raise UserError(_too_many_ranks(world, f"host {world.host} shows {torch.cuda.device_count()} GPUs"))
    # DeepSpeed and transformers read these names whatever the launcher sets. To both, LOCAL_RANK is the
    # number of the GPU.
    gpu = world.device.index if has_gpu else world.local_rank
    os.environ.update(RANK=str(world.rank), WORLD_SIZE=str(world.size), LOCAL_RANK=str(gpu))
    if has_gpu:
        torch.cuda.set_device(world.device)
    else:
        _choose_interface(world)
    try:
        dist.init_process_group(
            "nccl" if has_gpu else "gloo",
            rank=world.rank,
            world_size=world.size,
            timeout=timedelta(minutes=timeout_minutes),
        )
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise UserError(_busy_port()) from None
    if has_gpu and world.size > 1:
        _check_gpus(world)


def gpu_index(local_rank: int, visible: int) -> int:
    """The number of the GPU of a rank that sees `visible` GPUs."""
    return 0 if visible == 1 else local_rank


def _busy_port() -> Fault:
    """Only rank 0 listens: it alone has this fault, and its launcher ends the others."""
    problem = "is in use on this host, perhaps by another run"
    if "CROSS_SIZE" in os.environ:  # the deepspeed launcher
        remedy = f"give a free one: deepspeed --master_port {free_port()} …"
        return Fault("--master_port", problem, remedy, os.environ["MASTER_PORT"])
    remedy = f"give a free one (--master_port or export MASTER_PORT={free_port()}), the same on all hosts"
    return Fault("MASTER_PORT (--master_port)", problem, remedy, os.environ["MASTER_PORT"])


def _check_gpus(world: World) -> None:
    """Raise a `UserError` on every rank if two ranks have the same GPU."""
    import torch
    import torch.distributed as dist

    store = dist.distributed_c10d._get_default_store()
    own = f"{torch.cuda.get_device_properties(world.device).uuid} of host {world.host}"
    store.set(f"gpu of rank {world.rank}", own)
    gpus = [store.get(f"gpu of rank {rank}").decode() for rank in range(world.size)]
    if pair := shared_gpu(gpus):
        problem = f"ranks {pair[0]} and {pair[1]} have the same GPU, {gpus[pair[0]]}"
        raise UserError(_too_many_ranks(world, problem))


def shared_gpu(gpus: Sequence[str]) -> tuple[int, int] | None:
    """Two ranks with the same GPU; `gpus` names the GPU of each rank."""
    first = {gpu: rank for rank, gpu in reversed(list(enumerate(gpus)))}
    return next(((first[gpu], rank) for rank, gpu in enumerate(gpus) if first[gpu] != rank), None)


def _too_many_ranks(world: World, problem: str) -> Fault:
    remedy = "start at most one rank for each GPU, and let each rank see all GPUs of its host or only its own"
    return Fault("LOCAL_RANK", problem, remedy, world.local_rank)


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
        raise UserError.of(
            name, "must be a whole number", "start the ranks through a launcher, which sets it", text
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
        with suppress(OSError, ValueError):  # the reader is gone, or the stream is closed
            stream.flush()
    os._exit(code)


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` reports that a device ran out of memory; on the CPU only its text says so."""
    if "can't allocate memory" in str(error):
        return True
    if "torch" not in sys.modules:
        return False
    import torch

    return isinstance(error, torch.OutOfMemoryError)
