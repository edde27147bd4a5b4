"""Where ranks meet (MASTER_ADDR, MASTER_PORT) under launchers that do not set it: srun and mpirun."""

from __future__ import annotations

import re
import socket
import sys
import time
from collections.abc import Mapping, Sequence

from gaguide.distributed.network import address_for_others
from gaguide.errors import UserError
from gaguide.ports import free_port

# Below Linux's ephemeral ports (32768 and up), which connections may be using.
_FIRST_PORT, _PORTS = 15_000, 17_000
# How long ranks look for rank 0, whose host may still be importing torch from a slow file system.
_SEARCH_SECONDS = 600.0


def rendezvous(environ: Mapping[str, str], rank: int, size: int) -> dict[str, str]:
    """MASTER_ADDR and MASTER_PORT, the same on all ranks; a value that `environ` has is kept.

    `rank` and `size` are those of the launcher. Under mpirun this is a collective over all ranks. Raises a
    `UserError` where they cannot be derived.
    """
    given = {name: environ[name] for name in ("MASTER_ADDR", "MASTER_PORT") if environ.get(name)}
    if len(given) == 2:
        return given
    if size == 1:
        found = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    elif "SLURM_STEP_ID" in environ and environ.get("SLURM_PROCID") == str(rank):
        found = from_slurm(environ)
    elif "OMPI_COMM_WORLD_RANK" in environ or "PMI_RANK" in environ:
        found = _from_mpi(rank, size)
    else:
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in given]
        raise UserError.of(
            ", ".join(missing),
            f"must be set for {size} ranks",
            "export the first host's name and a free port, the same on all ranks",
        )
    return found | given


def from_slurm(environ: Mapping[str, str]) -> dict[str, str]:
    """The host of rank 0, and a port that depends on job and step.

    Works without scontrol, which containers lack. Raises a `UserError` where the list of hosts is invalid, or
    rank 0's host cannot be determined.
    """
    names = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST") or ""
    try:
        hosts = expand_hosts(names)
        hosts[0]
    except (ValueError, IndexError):
        remedy = "export MASTER_ADDR, the first host's name, before srun"
        raise UserError.of("SLURM_JOB_NODELIST", "is not a list of hosts", remedy, names) from None
    job, step = (_digits(environ.get(name, "0")) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    port = _FIRST_PORT + (job * 31 + step) % _PORTS
    return {"MASTER_ADDR": _host_of_rank_0(environ, hosts, port), "MASTER_PORT": str(port)}


def _host_of_rank_0(environ: Mapping[str, str], hosts: Sequence[str], port: int) -> str:
    """The first host of the step, except where the ranks are on hosts in an arbitrary order.

    There (`srun --distribution=arbitrary`, SLURM_HOSTFILE) no variable says where rank 0 is, and Slurm's
    lists are sorted; but rank 0 knows its own host, and listens there.
    """
    if "SLURM_ARBITRARY_NODELIST" not in environ or len(hosts) == 1:
        return hosts[0]
    if environ.get("SLURM_PROCID") == "0":
        return hosts[int(environ.get("SLURM_NODEID", "0"))]
    until = time.monotonic() + _SEARCH_SECONDS
    while time.monotonic() < until:
        for host in hosts:
            try:
                socket.create_connection((host, port), timeout=2).close()
                return host
            except OSError:
                continue
        time.sleep(0.2)
    problem = f"rank 0 listens on none of them at port {port}"
    remedy = "export MASTER_ADDR, the host of rank 0, before srun"
    raise UserError.of("SLURM_ARBITRARY_NODELIST", problem, remedy, ",".join(hosts))


def expand_hosts(names: str) -> list[str]:
    """Host names of Slurm's compressed list, in order: `a[01-02,7],b` → a01, a02, a7, b."""
    hosts: list[str] = []
    # Commas inside brackets do not separate names.
    for word in re.findall(r"(?:[^,\[\]]|\[[^\]]*\])+", names):
        expanded = [""]
        for literal, ranges in re.findall(r"([^\[\]]+)|\[([^\]]*)\]", word):
            ends = [literal] if literal else [number for part in ranges.split(",") for number in _range(part)]
            expanded = [start + end for start in expanded for end in ends]
        hosts += expanded
    return hosts


def _range(part: str) -> list[str]:
    """`08-10` → 08, 09, 10; `7` → 7."""
    first, dash, last = part.partition("-")
    if not first.isdigit() or (dash and not last.isdigit()):
        raise ValueError(part)
    if not dash:
        return [first]
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]


def _from_mpi(rank: int, size: int) -> dict[str, str]:
    """An address of rank 0's host, broadcast over MPI (a collective), which is then finalized.

    Nothing else here uses MPI. A rank that ended without finalizing it (`os._exit`) would make Open MPI's
    launcher end with an error, and one that an exception ends would wait in it for the others.
    """
    is_ours = "mpi4py.MPI" not in sys.modules  # whose import initializes MPI
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise UserError.of(
            "MASTER_ADDR, MASTER_PORT",
            f"are not set by mpirun, and mpi4py, which could agree on them, cannot be imported ({error})",
            "pip install 'gaguide[mpi]', or export the first host's name and a free port: "
            "mpirun -x MASTER_ADDR=… -x MASTER_PORT=… (Open MPI), -genv NAME VALUE (MPICH)",
        ) from None
    world = MPI.COMM_WORLD
    if (world.rank, world.size) != (rank, size):
        raise UserError.of(
            "mpirun",
            f"started {size} ranks but mpi4py sees {world.size}: it was built for another MPI library "
            f"({MPI.Get_library_version().splitlines()[0]})",
            "use that library's mpirun, or pip install --force-reinstall --no-binary mpi4py mpi4py",
        )
    one_host = len(set(world.allgather(socket.gethostname()))) == 1
    address = "127.0.0.1" if one_host else address_for_others()
    found: dict[str, str] = world.bcast({"MASTER_ADDR": address, "MASTER_PORT": str(free_port())})
    if is_ours:
        MPI.Finalize()
    return found


def _digits(text: str) -> int:
    return int("".join(filter(str.isdigit, text)) or 0)
