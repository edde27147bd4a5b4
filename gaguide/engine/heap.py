"""The C library's heap: how freed host memory returns to the system (glibc; elsewhere nothing happens)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# malloc.h of glibc. By default it raises the threshold up to 32 MiB as large blocks are freed.
_M_MMAP_THRESHOLD = -3
_LARGEST_MMAP_THRESHOLD = 32 * 2**20


@contextmanager
def separate_large_tensors() -> Iterator[None]:
    """Inside, every CPU tensor of 1 MiB or more gets its own mapping, which is unmapped when it is freed.

    By default only tensors above 32 MiB do, and a model that is converted and partitioned leaves gigabytes of
    holes in the heap. Training itself runs outside, where reusing holes is faster than mapping fresh
    pages; `trim_heap` returns them before an offloaded optimizer's step.
    """
    mallopt = _glibc("mallopt")
    mallopt(_M_MMAP_THRESHOLD, 2**20)
    try:
        yield
    finally:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)


def trim_heap() -> None:
    """Return the heap's free pages to the system."""
    _glibc("malloc_trim")(0)


def _glibc(name: str) -> Callable[..., object]:
    """A function of glibc; with another C library, one that does nothing."""
    return getattr(ctypes.CDLL(None), name, lambda *_: None)
