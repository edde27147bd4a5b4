"""Sentences of remedies."""

from __future__ import annotations

import pytest

from gaguide.errors import UserError, suggestion
from gaguide.study.file import load_study
from gaguide.study.grid import make_grid


def test_a_second_remedy_follows_with_its_punctuation() -> None:
    known = ["alpha", "beta"]
    assert suggestion("alpa", known, otherwise="give a file") == "did you mean 'alpha'? Or give a file"
    assert suggestion("x", known, otherwise="give a file") == "known: alpha, beta; or give a file"
    assert suggestion("x", known, limit=1, otherwise="give a file") == "known: alpha, …; or give a file"
    assert suggestion("x", known) == "known: alpha, beta"


def test_an_unknown_experiment_of_a_study() -> None:
    with pytest.raises(UserError) as raised:
        make_grid(load_study("laptop", {"experiments": "[zzz]"}))
    assert "original; or give it a guidance section" in str(raised.value)
