"""The fingerprint of the code depends on the package's files only."""

from __future__ import annotations

from pathlib import Path

import pytest

from gaguide.log import code


def test_fingerprint_depends_on_code_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "_PACKAGE", tmp_path)
    fingerprint = code.code_fingerprint.__wrapped__
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.py").write_text("x = 1\n")
    first = fingerprint()
    (tmp_path / "sub" / "__pycache__").mkdir()
    (tmp_path / "sub" / "__pycache__" / "a.pyc").write_bytes(b"compiled")
    assert fingerprint() == first
    (tmp_path / "sub" / "a.py").write_text("x = 2\n")
    second = fingerprint()
    (tmp_path / "b.yaml").write_text("x: 2\n")
    assert len({first, second, fingerprint()}) == 3


def test_commit_is_none_outside_of_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "_PACKAGE", tmp_path)
    assert code.code_commit.__wrapped__() is None
