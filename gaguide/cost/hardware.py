"""Accelerators and networks by name: the makers' numbers, and the share of them that training reaches.

Peaks are dense (no sparsity), from the makers' data sheets: V100, A100, H100, H200, L40S (NVIDIA), GeForce
RTX 3090 and 4090 (GA102 and Ada architecture papers; half precision with fp32 accumulation). fp32 is that of
the plain cores: torch multiplies fp32 matrices without TF32 unless asked. Links are bytes a second in one
direction: NVLink and PCIe for a GPU, networks for one network card.
"""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30

MATRIX_SHARE = 0.65
"""Share of the peak that large matrix products reach."""
MEMORY_SHARE = 0.8
"""Share of the memory's bandwidth that elementwise operations reach."""
LINK_SHARE = 0.8
"""Share of a link's bandwidth that large collectives reach."""
OVERLAP_SHARE = 0.8
"""Share of overlapping communication that compute can hide at best: first gathers, last reductions can't."""
RESERVED_BYTES = 1.5 * GIB
"""Context, libraries' workspaces and NCCL's buffers on a GPU: an allowance, not a measurement."""
FRAGMENTATION = 0.05
"""Share of the tensors' bytes that the caching allocator holds beside them: an allowance too."""
LAUNCH_SECONDS = 0.85e-3
"""What the host needs to start one block's operations, forward and backward, once (benchmarks/RESULTS.md)."""
HOOK_SECONDS = 4.1e-3
"""What DeepSpeed's hooks on every module of a block take at stage 3, as above."""
HOST_BANDWIDTH = 100e9
"""Bytes a second of a node's memory that its ranks' CPU optimizers share."""
DISK_BANDWIDTH = 5e9
"""Bytes a second of a node's NVMe, read and written together, that its ranks share."""


@dataclass(frozen=True)
class Gpu:
    """memory: bytes. half, full: matrix FLOP/s in 16 bits and fp32. bandwidth, link, host: bytes/s."""

    memory: float
    half: float
    full: float
    bandwidth: float
    link: float
    host: float
    bf16: bool = True
    fp16: bool = True

    def peak(self, precision: str) -> float:
        """Matrix FLOP/s in that precision."""
        return self.full if precision == "fp32" else self.half


@dataclass(frozen=True)
class Link:
    """bandwidth: bytes/s of one network card in one direction. latency: seconds of one hop."""

    bandwidth: float
    latency: float


_T, _G = 1e12, 1e9

GPUS = {
    "v100-16": Gpu(16 * GIB, 125 * _T, 15.7 * _T, 900 * _G, 150 * _G, 16 * _G, bf16=False),
    "v100-32": Gpu(32 * GIB, 125 * _T, 15.7 * _T, 900 * _G, 150 * _G, 16 * _G, bf16=False),
    "a100-40": Gpu(40 * GIB, 312 * _T, 19.5 * _T, 1555 * _G, 300 * _G, 32 * _G),
    "a100-80": Gpu(80 * GIB, 312 * _T, 19.5 * _T, 2039 * _G, 300 * _G, 32 * _G),
    "h100": Gpu(80 * GIB, 989 * _T, 67 * _T, 3350 * _G, 450 * _G, 64 * _G),
    "h200": Gpu(139 * GIB, 989 * _T, 67 * _T, 4800 * _G, 450 * _G, 64 * _G),
    "l40s": Gpu(45 * GIB, 362 * _T, 91.6 * _T, 864 * _G, 32 * _G, 32 * _G),
    "rtx-4090": Gpu(24 * GIB, 165 * _T, 82.6 * _T, 1008 * _G, 32 * _G, 32 * _G),
    "rtx-3090": Gpu(24 * GIB, 71 * _T, 35.6 * _T, 936 * _G, 32 * _G, 32 * _G),
}

LINKS = {
    "10gbe": Link(1.25 * _G, 30e-6),
    "25gbe": Link(3.125 * _G, 30e-6),
    "100gbe": Link(12.5 * _G, 20e-6),
    "roce-200": Link(25 * _G, 10e-6),
    "roce-400": Link(50 * _G, 10e-6),
    "ib-edr": Link(12.5 * _G, 5e-6),
    "ib-hdr": Link(25 * _G, 5e-6),
    "ib-ndr": Link(50 * _G, 5e-6),
}

INSIDE_LATENCY = 2e-6
"""Seconds of one hop between GPUs of a node."""
