"""Host memory: what is freed while a model is built returns to the system."""

from __future__ import annotations

import ctypes

import psutil
import pytest
import torch

from gaguide.engine.heap import separate_large_tensors


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library has no mallopt")
def test_freed_tensors_return_their_memory_although_others_stay() -> None:
    resident = psutil.Process().memory_info
    freed, kept = [], []
    with separate_large_tensors():
        for _ in range(64):
            freed.append(torch.ones(2**20))  # 4 MiB
            kept.append(torch.ones(64))
        full = resident().rss
        freed.clear()
    assert resident().rss < full - 128 * 2**20  # some were allocated in existing holes
    assert len(kept) == 64
