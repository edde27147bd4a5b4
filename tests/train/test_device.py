"""Memory of this process: what was freed is given back."""

from __future__ import annotations

import ctypes

import psutil
import pytest
import torch

from gaguide.train.device import give_back_memory


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="this C library cannot give back")
def test_holes_between_tensors_that_stay_are_given_back() -> None:
    resident = psutil.Process().memory_info
    # Below malloc's threshold for maps of their own; something that stays after each.
    freed, kept = [], []
    for _ in range(4096):
        freed.append(torch.ones(16 * 1024))  # 64 KiB
        kept.append(torch.ones(64))
    full = resident().rss
    del freed
    give_back_memory()
    assert resident().rss < full - 128 * 2**20
    assert len(kept) == 4096
