"""Programs run under a user id that the machine does not know."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gaguide.home import ensure_home
from tests.support.ranks import REPOSITORY

UNKNOWN = 54_321


def test_a_known_user_keeps_the_environment() -> None:
    environ: dict[str, str] = {}
    assert ensure_home(environ, os.getuid()) is None and not environ


def test_an_unknown_user_gets_a_home_and_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    environ: dict[str, str] = {}
    reported = ensure_home(environ, UNKNOWN)
    home = tmp_path / f"gaguide-home-{UNKNOWN}"
    assert reported is not None and str(home) in reported and "HOME" in reported
    assert environ == {"USER": str(UNKNOWN), "HOME": str(home)} and home.is_dir()
    given = {"HOME": "/data"}
    assert ensure_home(given, UNKNOWN) is None and given == {"USER": str(UNKNOWN), "HOME": "/data"}


@pytest.mark.processes
def test_torch_and_pathlib_work_for_an_unknown_user() -> None:
    enter = ["unshare", "--user", f"--map-user={UNKNOWN}", f"--map-group={UNKNOWN}"]
    if shutil.which("unshare") is None or subprocess.run([*enter, "true"], capture_output=True).returncode:
        pytest.skip("this machine does not allow user namespaces")
    program = (
        "import gaguide, getpass, os, pathlib; assert pathlib.Path.home().is_dir(); print(os.getuid(), "
        "getpass.getuser()); from torch._inductor.runtime.cache_dir_utils import default_cache_dir as d; d()"
    )
    environ = {name: value for name, value in os.environ.items() if name not in ("HOME", "USER", "LOGNAME")}
    environ["PYTHONPATH"] = str(REPOSITORY)
    done = subprocess.run(
        [*enter, sys.executable, "-c", program], env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(UNKNOWN), str(UNKNOWN)]
    assert done.stderr.count(f"user {UNKNOWN} has no home folder") == 1
