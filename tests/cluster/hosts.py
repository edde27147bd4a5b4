"""Hosts on one machine: each a network namespace with its own address, hostname, processes and sshd.

A bridge in a separate namespace joins them, so nothing of this machine's network is touched. The file
system is shared, as in a cluster. Killing a host is a power cut; its link can be cut and restored.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.patience import patience, wait_until
from tests.support.ranks import REPOSITORY

_PACKAGES = {"ip": "iproute2", "sshd": "openssh-server", "pdsh": "pdsh"}
_PATH = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
_PREFIX = "gag"  # of the namespaces' names; the id of the process that made them and a counter follow
_networks = itertools.count()

# The host's first process. Debian's way: a host's own name is a loopback address to itself.
_INIT = """
set -e
mount --bind {folder}/ssh {home}/.ssh
mount --bind {folder}/hosts /etc/hosts
hostname {name}
ip link set lo up
mkdir -p /run/sshd
exec /usr/sbin/sshd -D -e -f {folder}/sshd_config
"""
_SSHD = """
Port 22
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/ssh/authorized_keys
PidFile none
StrictModes no
UsePAM no
PermitRootLogin yes
PasswordAuthentication no
SetEnv PATH={path}
"""
_SSH = """
Host *
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
"""


def need(programs: Mapping[str, str]) -> None:
    """Install the packages of programs that are missing, or skip the test with the reason."""
    if os.getuid() != 0:
        pytest.skip("making hosts needs root (network namespaces)")
    missing = [package for program, package in programs.items() if _which(program) is None]
    if missing and shutil.which("apt-get"):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": _no_questions()}
        install = ["apt-get", "install", "-y", "--no-install-recommends", *missing]
        if subprocess.run(install, **quiet, timeout=patience(300)).returncode:
            subprocess.run(["apt-get", "update"], **quiet, timeout=patience(120))
            subprocess.run(install, **quiet, timeout=patience(300))
    missing = [package for program, package in programs.items() if _which(program) is None]
    if missing:
        pytest.skip(f"missing, and apt-get could not install it: {', '.join(missing)}")


def _which(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def _no_questions() -> dict[str, str]:
    return os.environ | {"DEBIAN_FRONTEND": "noninteractive"}


def environment(**more: str) -> dict[str, str]:
    """The variables that a rank needs, and none of the machine's own launchers."""
    return {
        "PATH": _PATH,
        "HOME": str(Path.home()),
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(REPOSITORY),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "DS_ACCELERATOR": "cpu",
        **more,
    }


@dataclass
class Host:
    """A running host; `process` runs outside it, and the host ends with it."""

    name: str
    address: str
    namespace: str
    folder: Path
    process: subprocess.Popen[bytes]
    _init: int | None = None

    def command(self, words: Sequence[str]) -> list[str]:
        """The command line that runs `words` on this host."""
        enter = ["nsenter", "--target", str(self.init), "--net", "--uts", "--pid", "--mount"]
        return [*enter, *words]

    @property
    def init(self) -> int:
        """Process id of its first process, as this machine numbers it."""
        if self._init is None:
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
            self._init = int(children[0])
        return self._init

    def start(self, *words: str | Path, log: Path, cwd: Path, **more: str) -> subprocess.Popen[bytes]:
        """Start a command here; both its outputs go to `log`."""
        with log.open("wb") as out:
            return subprocess.Popen(
                self.command(list(map(str, words))),
                stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                cwd=cwd, env=environment(**more), start_new_session=True,
            )  # fmt: skip

    def run(self, *words: str | Path, timeout: float = 60, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command here to its end, output captured together."""
        return subprocess.run(
            self.command(list(map(str, words))),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=patience(timeout), env=environment(**more),
        )  # fmt: skip

    def processes(self, text: str) -> dict[int, str]:
        """Pid, as this machine numbers it → command line, of this host's processes with `text` in it."""
        mine = Path(f"/proc/{self.init}/ns/pid").readlink()
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                if text in line and (folder / "ns" / "pid").readlink() == mine:
                    found[int(folder.name)] = line
        return found

    def ranks(self, script: str = "train.py") -> dict[int, str]:
        """Command lines of the ranks on this host: Python processes that run `script`, or its module."""
        names = {script, "gaguide.train"} if script == "train.py" else {script}
        return {
            pid: line
            for pid, line in self.processes("").items()
            if line
            and "python" in line.split()[0]
            and names & {Path(word).name for word in line.split()[1:4]}
        }

    def power_off(self) -> None:
        """End all its processes at once; the link goes first, so that no other host is notified."""
        _ip("link", "set", "eth0", "down", namespace=self.namespace)
        self.process.kill()
        self.process.wait()


@dataclass
class Hosts:
    """All hosts, and the switch that connects them."""

    hosts: list[Host]
    switch: str
    folder: Path
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __getitem__(self, at: int) -> Host:
        return self.hosts[at]

    def __iter__(self) -> Iterator[Host]:
        return iter(self.hosts)

    def hostfile(self, slots: int = 1, count: int | None = None) -> Path:
        """A hostfile of DeepSpeed's over the first `count` hosts, or all."""
        path = self.folder / "hostfile"
        path.write_text("".join(f"{host.name} slots={slots}\n" for host in self.hosts[:count]))
        return path

    def cut(self, at: int) -> None:
        """Cut the network link of one host; its processes keep running."""
        _ip("link", "set", f"p{at}", "down", namespace=self.switch)

    def restore(self, at: int) -> None:
        """Restore the link."""
        _ip("link", "set", f"p{at}", "up", namespace=self.switch)

    def ranks(self, script: str = "train.py") -> dict[str, dict[int, str]]:
        """The running ranks, by host."""
        return {host.name: host.ranks(script) for host in self.hosts if host.process.poll() is None}

    def wait_for_no_ranks(self, seconds: float, script: str = "train.py") -> None:
        """Wait until no rank lives on any host; fails the test after `seconds`."""
        wait_until(
            lambda: not any(self.ranks(script).values()), seconds, lambda: f"orphans: {self.ranks(script)}"
        )


@contextlib.contextmanager
def hosts(count: int, folder: Path) -> Iterator[Hosts]:
    """`count` hosts node0, node1 …; at the end they are removed with all their processes."""
    need(_PACKAGES)
    _sweep()
    tried = subprocess.run(
        ["unshare", "--net", "--pid", "--fork", "--mount", "true"], capture_output=True, text=True
    )
    if tried.returncode:
        pytest.skip(f"this machine makes no namespaces ({tried.stderr.strip()})")
    network = f"{_PREFIX}{os.getpid()}-{next(_networks)}"
    switch = f"{network}-sw"
    made: list[Host] = []
    try:
        _ip("netns", "add", switch)
        _ip("link", "add", "br0", "type", "bridge", namespace=switch)
        _ip("link", "set", "br0", "up", namespace=switch)
        (Path.home() / ".ssh").mkdir(mode=0o700, exist_ok=True)
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key"],
            check=True,
            timeout=patience(30),
        )
        for at in range(count):
            made.append(_host(at, count, folder, network))
        for host in made:
            _wait_for_sshd(host)
        yield Hosts(made, switch, folder)
    finally:
        for host in made:
            host.process.kill()
            host.process.wait()
        for name in [*(host.namespace for host in made), switch]:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def _host(at: int, count: int, folder: Path, network: str) -> Host:
    name, namespace, own = f"node{at}", f"{network}-{at}", folder / f"node{at}"
    switch = f"{network}-sw"
    address = f"10.77.0.{at + 1}"
    _ip("netns", "add", namespace)
    _ip("link", "add", "eth0", "netns", namespace, "type", "veth", "peer", "name", f"p{at}", "netns", switch)
    _ip("link", "set", f"p{at}", "master", "br0", namespace=switch)
    _ip("link", "set", f"p{at}", "up", namespace=switch)
    _ip("address", "add", f"{address}/24", "dev", "eth0", namespace=namespace)
    _ip("link", "set", "eth0", "up", namespace=namespace)

    (own / "ssh").mkdir(parents=True)
    shutil.copy(folder / "key", own / "ssh" / "id_ed25519")
    shutil.copy(folder / "key.pub", own / "ssh" / "authorized_keys")
    shutil.copy(folder / "key", own / "host_key")
    (own / "ssh" / "config").write_text(_SSH)
    (own / "sshd_config").write_text(_SSHD.format(folder=own, path=_PATH))
    others = "".join(f"10.77.0.{other + 1} node{other}\n" for other in range(count) if other != at)
    (own / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n{others}")
    (own / "init.sh").write_text(_INIT.format(folder=own, home=Path.home(), name=name))

    inside = [
        "nsenter",
        f"--net=/run/netns/{namespace}",
        "unshare",
        "--uts",
        "--pid",
        "--fork",
        "--mount-proc",
    ]
    inside += ["--kill-child", "--mount", "--propagation", "private", "bash", str(own / "init.sh")]
    with (own / "sshd.log").open("wb") as log:
        process = subprocess.Popen(
            inside,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=_die_with_parent,
        )
    return Host(name, address, namespace, own, process)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no host outlives the tests


def _wait_for_sshd(host: Host) -> None:
    def answers() -> bool:
        with contextlib.suppress(OSError, IndexError, subprocess.TimeoutExpired):
            return host.run("ssh", "localhost", "hostname", timeout=10).stdout.strip() == host.name
        return False

    wait_until(answers, 20, lambda: f"{host.name} did not start: {(host.folder / 'sshd.log').read_text()}")


def _ip(*words: str, namespace: str | None = None) -> None:
    inside = ["-n", namespace] if namespace else []
    done = subprocess.run(["ip", *inside, *words], capture_output=True, text=True, timeout=patience(30))
    if done.returncode:
        pytest.skip(
            f"this machine makes no network of namespaces: ip {' '.join(words)}: {done.stderr.strip()}"
        )


def _sweep() -> None:
    """Namespaces of test processes that were killed."""
    for path in Path("/run/netns").glob(f"{_PREFIX}*-*"):
        owner = path.name.removeprefix(_PREFIX).partition("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            subprocess.run(["ip", "netns", "delete", path.name], capture_output=True)
