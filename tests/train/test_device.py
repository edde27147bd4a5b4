"""Memory of this process: what was freed while a model is built is given back."""

from __future__ import annotations

import ctypes

import psutil
import pytest
import torch

from gaguide.engine.heap import separate_large_tensors


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="this C library has one way only")
def test_tensors_between_tensors_that_stay_are_given_back() -> None:
    resident = psutil.Process().memory_info
    freed, kept = [], []
    with separate_large_tensors():
        for _ in range(64):
            freed.append(torch.ones(2**20))  # 4 MiB
            kept.append(torch.ones(64))
        full = resident().rss
        freed.clear()
    assert resident().rss < full - 128 * 2**20  # some came out of holes that were there
    assert len(kept) == 64
