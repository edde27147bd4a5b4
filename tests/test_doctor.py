"""`gaguide doctor` on this machine, and under faults that the tests create."""

from __future__ import annotations

import http.server
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from typer.testing import CliRunner

from gaguide.cli import doctor as command
from gaguide.doctor import Check, machine, network, software
from gaguide.doctor.check import guarded
from gaguide.doctor.diagnose import diagnose
from gaguide.doctor.probes import Probes
from gaguide.ports import free_port
from tests.support.patience import patience

V100, H100 = {"name": "V100", "gib": 16}, {"name": "H100", "gib": 80}


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tests from contacting a hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.delenv("NCCL_SOCKET_IFNAME", raising=False)


def _one(checks: Iterator[Check] | list[Check], name: str) -> Check:
    return next(check for check in checks if check.name == name)


@pytest.mark.processes
def test_this_machine_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gaguide.doctor.diagnose", lambda busy: diagnose(patience(60), busy))
    app = typer.Typer()
    app.command()(command.doctor)
    result = CliRunner().invoke(app, ["--json"])
    report = json.loads(result.stdout)
    checks = {check["name"]: check for check in report["checks"]}
    assert {"python", "torch", "compiler", "ninja", "accelerator", "gloo", "mpi", "memory", "slurm",
            "model hub", "shared memory", "compiled ops' cache"} <= checks.keys()  # fmt: skip
    assert checks["torch"]["found"] == metadata.version("torch")
    assert checks["gloo"]["status"] == "ok", checks["gloo"]
    assert all((check["remedy"] == "") == (check["status"] == "ok") for check in checks.values())
    failed = any(check["status"] == "fail" for check in checks.values())
    assert report["ok"] is not failed and result.exit_code == int(failed)


def test_exit_code_and_lines_follow_the_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    app = typer.Typer()
    app.command()(command.doctor)
    checks = [Check("a[b]", "ok", "fine"), Check("gone", "warn", "x", "fix [it] " + "so " * 60)]
    asked = []
    monkeypatch.setattr("gaguide.doctor.diagnose", lambda busy: asked.append(busy) or checks)
    result = CliRunner().invoke(app, ["--busy"])
    assert result.exit_code == 0 and "a[b]" in result.stdout and "fix [it] so" in result.stdout
    checks.append(Check("broken", "fail", "x", "y"))
    result = CliRunner().invoke(app)
    assert result.exit_code == 1 and "1 would fail" in result.stdout
    assert asked == [True, False]


def test_a_check_that_raises_becomes_a_warning() -> None:
    (check,) = guarded("odd", lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    assert check.status == "warn" and "ZeroDivisionError" in check.found


@pytest.mark.processes
def test_gloo_on_a_missing_interface_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nowhere9")
    check = _one(network.interfaces(), "GLOO_SOCKET_IFNAME")
    assert check.status == "fail" and "lo" in check.remedy
    with Probes(30) as probes:
        port = str(free_port())
        for rank in "01":
            probes.start("gloo", rank, port, key=f"gloo{rank}")
        check = network.gloo([probes.answer("gloo0"), probes.answer("gloo1")])
    assert check.status == "fail" and "GLOO_SOCKET_IFNAME" in check.remedy


def test_nccl_interface_names_match_as_in_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, status in (("l", "ok"), ("=l", "fail"), ("=lo", "ok"), ("^docker", "ok"), ("nowhere", "fail")):
        monkeypatch.setenv("NCCL_SOCKET_IFNAME", value)
        assert _one(network.interfaces(), "NCCL_SOCKET_IFNAME").status == status, value


@pytest.mark.processes
def test_a_probe_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    with Probes(0.05) as probes:
        probes.start("torch")
        child = probes._children["torch"]
        answer = probes.answer("torch")
        assert answer == {"late": True} and child.poll() is None
    assert child.poll() is not None
    for driver, status in ((True, "fail"), (False, "warn")):
        monkeypatch.setattr(machine, "has_nvidia_driver", lambda driver=driver: driver)
        assert _one(machine.accelerator(answer), "accelerator").status == status
    assert _one(software.ops(answer), "deepspeed ops").status == "warn"
    assert software.mpi(answer).status == "warn"
    assert network.gloo([answer, answer]).status == "warn"


@pytest.mark.processes
def test_a_probe_that_raises_reports_the_reason() -> None:
    with Probes(20) as probes:
        probes.start("nothing")
        assert "KeyError" in probes.answer("nothing")["error"]


def test_locks_left_by_a_killed_compile_are_found(tmp_path: Path) -> None:
    assert software.extension_locks(tmp_path).status == "ok"
    stale, held = tmp_path / "py311_cpu" / "async_io" / "lock", tmp_path / "cpu_adam" / "lock"
    for lock in (stale, held):
        lock.parent.mkdir(parents=True)
    descriptor = os.open(held, os.O_CREAT | os.O_EXCL)  # torch keeps it open while it compiles
    try:
        assert "right now" in software.extension_locks(tmp_path).found
        stale.touch()
        check = software.extension_locks(tmp_path)
    finally:
        os.close(descriptor)
    assert check.status == "fail"
    assert check.remedy.endswith(f"rm {stale}") and str(held) not in check.remedy


def test_locks_of_ops_that_are_never_compiled_do_not_count(tmp_path: Path) -> None:
    lock = tmp_path / "py311_cpu" / "shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    assert software.extension_locks(tmp_path).status == "ok"


def test_remedies_can_be_copied_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A remedy is one line of output, however long, and its paths are quoted."""
    lock = tmp_path / "a folder" / "cpu_adam" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    check = software.extension_locks(tmp_path / "a folder")
    assert check.remedy.endswith(f"rm '{lock}'")
    monkeypatch.setattr("gaguide.doctor.diagnose", lambda busy: iter([check]))
    app = typer.Typer()
    app.command()(command.doctor)
    assert f"→ {check.remedy}\n" in CliRunner().invoke(app, []).stdout


def test_gpus_that_the_user_hides_are_not_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "has_nvidia_driver", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    answer = {"devices": [], "cuda_build": "13.0", "hip_build": None}
    assert _one(machine.accelerator(answer), "accelerator").status == "warn"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert _one(machine.accelerator(answer), "accelerator").status == "fail"


def test_packages_out_of_range_come_with_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version
    versions = {"torch": "1.9.0", "pyarrow": "3.0"}
    monkeypatch.setattr(software.metadata, "version", lambda name: versions.get(name) or real(name))
    checks = list(software.packages())
    assert _one(checks, "torch").status == "fail" and "pip install 'torch" in _one(checks, "torch").remedy
    assert "pyarrow 3.0" in _one(checks, "other packages").found
    assert _one(checks, "deepspeed").status == "ok"


def test_an_old_python_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software.platform, "python_version", lambda: "3.8.1")
    assert software.python().status == "fail" and ">=3.11" in software.python().remedy


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_a_compiler_that_does_not_compile_fails(monkeypatch: pytest.MonkeyPatch, compiler: str) -> None:
    monkeypatch.setenv("CXX", compiler)
    check = software.compiler()
    assert check.status == "fail" and compiler in check.found


def test_programs_beside_the_interpreter_but_not_on_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(software.sys, "executable", str(tmp_path / "bin" / "python"))
    assert [check.status for check in software.programs()] == ["fail", "fail", "warn"]
    (tmp_path / "bin").mkdir()
    for name in ("ninja", "deepspeed"):
        (tmp_path / "bin" / name).touch()
    checks = list(software.programs())
    assert [check.status for check in checks] == ["fail", "warn", "warn"]
    assert "activate" in checks[0].remedy
    assert software.slurm().status == "ok"
    assert software.mpi({"library": "Open MPI v4"}).found.endswith("no mpirun on PATH")


def test_a_slurm_controller_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sinfo = tmp_path / "sinfo"
    sinfo.write_text("#!/bin/sh\necho 'slurm_load_partitions: Unable to contact' >&2\nexit 1\n")
    sinfo.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert software.slurm().status == "warn" and "Unable to contact" in software.slurm().found
    sinfo.write_text("#!/bin/sh\necho 'gpu* 4'\n")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert software.slurm() == Check("slurm", "ok", "partitions and nodes: gpu* 4; in job 7")


@pytest.mark.parametrize(
    ("answer", "name", "status"),
    [
        ({"devices": [], "cuda_build": None, "hip_build": None}, "accelerator", "warn"),
        ({"error": "ImportError: libcudart"}, "accelerator", "fail"),
        (
            {"devices": [{"name": "V100", "gib": 16}], "bf16": False, "nccl": {"version": "2.27"}},
            "accelerator",
            "warn",
        ),
        ({"devices": [H100], "bf16": True, "nccl": {"version": "2.27"}}, "nccl", "ok"),
        ({"devices": [H100], "bf16": True, "nccl": {"error": "no"}}, "nccl", "fail"),
        ({"devices": [], "count": 8}, "accelerator", "ok"),
        ({"devices": [], "count": 0, "cuda_build": None, "hip_build": None}, "accelerator", "warn"),
    ],
)
def test_accelerators(monkeypatch: pytest.MonkeyPatch, answer: dict, name: str, status: str) -> None:
    monkeypatch.setattr(machine.shutil, "which", lambda program: None)
    assert _one(machine.accelerator(answer), name).status == status


def test_ops_name_what_needs_them() -> None:
    checks = list(software.ops({"cpu_adam": True, "async_io": False}))
    assert [check.status for check in checks] == ["ok", "warn"] and "libaio" in checks[1].remedy
    assert next(software.ops({"error": "ImportError: x"})).status == "fail"


def _hangs(name: str) -> str:
    time.sleep(10_000)
    return name


def _unknown(name: str) -> str:
    raise socket.gaierror("Name or service not known")


def test_hostnames_that_other_hosts_cannot_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    assert network.hostname(lambda name: "10.0.0.7").status == "ok"
    loopback = network.hostname(lambda name: "127.0.1.1")
    assert loopback.status == "ok" and "chooses an interface" in loopback.found
    assert "does not resolve" in network.hostname(_unknown).found
    monkeypatch.setattr(network, "_NAME_SECONDS", 0.05)
    assert "does not end" in network.hostname(_hangs).found
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")
    assert network.hostname(lambda name: "127.0.1.1").status == "ok"


@pytest.fixture
def hub_server() -> Iterator[SimpleNamespace]:
    """A hub on loopback that answers every request with the status `.code`."""
    state = SimpleNamespace(code=200)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(state.code)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.address = f"http://127.0.0.1:{server.server_port}"
    yield state
    server.shutdown()
    server.server_close()


def test_hub(monkeypatch: pytest.MonkeyPatch, hub_server: SimpleNamespace) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert "HF_HUB_OFFLINE" in network.Hub().check().found
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", hub_server.address)
    for code, status in ((200, "ok"), (404, "ok"), (403, "warn"), (503, "warn")):
        hub_server.code = code
        assert network.Hub().check().status == status, code
    for address in (f"http://127.0.0.1:{free_port()}", "not an address"):
        monkeypatch.setenv("HF_ENDPOINT", address)
        check = network.Hub().check()
        assert check.status == "warn" and address in check.found and "HF_HUB_OFFLINE" in check.remedy


def test_memory_respects_the_limit_of_a_container(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: {64 * 2**20} kB\nMemAvailable: {60 * 2**20} kB\n")
    assert machine.memory(meminfo, tmp_path).found == "60.0 of 64.0 GiB free"
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("0\n")
    assert machine.memory(meminfo, tmp_path).status == "ok"
    (tmp_path / "memory.max").write_text(str(4 * 2**30))
    (tmp_path / "memory.current").write_text(str(3 * 2**30))
    check = machine.memory(meminfo, tmp_path)
    assert check.status == "warn" and check.found == "1.0 of 4.0 GiB free"


def test_full_and_read_only_disks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "not" / "made"
    for free, status in ((0.1, "fail"), (2, "warn"), (50, "ok")):
        monkeypatch.setattr(
            machine.shutil, "disk_usage", lambda at, free=free: SimpleNamespace(free=free * 2**30)
        )
        assert machine.disk("disk", folder).status == status
    monkeypatch.setattr(machine.os, "access", lambda at, mode: False)
    assert "not writable" in machine.disk("disk", folder).found


def test_shared_memory_of_a_default_container(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert machine.shared_memory(tmp_path / "none").status == "warn"
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda at: SimpleNamespace(free=64 * 2**20))
    check = machine.shared_memory(tmp_path)
    assert check.status == "warn" and re.search(r"64 MiB.*", check.found) and "--shm-size" in check.remedy
