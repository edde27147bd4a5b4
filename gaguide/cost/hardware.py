"""GPUs and networks by name: data-sheet numbers, and the share of them that training reaches.

Peaks are dense (no sparsity), from the vendors' data sheets; 16-bit peaks are with fp32 accumulation. fp32 is
that of the plain cores, because torch multiplies fp32 matrices without TF32 by default. Link speeds are in
bytes per second and one direction: NVLink, else PCIe.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

GIB = 2**30

MATRIX_SHARE = 0.65
"""Share of the peak that large matrix products reach on A100s, by the runs in published.py."""
HOPPER_SHARE = 0.48
"""The same on H100s. Also assumed of H200 (the same chip), and of Blackwell and MI300, without any run."""
MEMORY_SHARE = 0.8
"""Share of the memory bandwidth that elementwise operations reach."""
LINK_SHARE = 0.8
"""Share of a link's bandwidth that large collectives reach."""
OVERLAP_SHARE = 0.8
"""Largest share of overlapping communication that compute hides: the ends never do."""
RESERVED_BYTES = 1.5 * GIB
"""Allowance, not a measurement, for the GPU's context, library workspaces and NCCL buffers."""
FRAGMENTATION = 0.05
"""Allowance, not a measurement, for the caching allocator's memory beyond the tensors' bytes."""
LAUNCH_SECONDS = 0.71e-3
"""Host time to launch one block's operations, forward and backward, once (benchmarks/RESULTS.md)."""
HOOK_SECONDS = (0.0, 0.34e-3, 0.37e-3, 3.5e-3)
"""Host time of DeepSpeed's hooks on one block, by ZeRO stage, measured in the same way."""
HOST_BANDWIDTH = 100e9
"""Bytes per second of host memory, shared by the CPU optimizers of a node's ranks."""
DISK_BANDWIDTH = 5e9
"""Bytes per second of a node's NVMe, reads and writes together, shared by its ranks."""
INSIDE_LATENCY = 2e-6
"""Seconds of one hop between GPUs of a node."""


@dataclass(frozen=True)
class Gpu:
    """One GPU model."""

    reported: str
    """The part of the name that torch and nvidia-smi report which identifies it, such as `H100 PCIe`."""
    memory: float
    """Usable bytes."""
    peak_16bit: float
    """Matrix FLOP/s in bf16 or fp16."""
    peak_fp32: float
    """Matrix FLOP/s in fp32."""
    bandwidth: float
    """Bytes per second of its memory."""
    link: float
    """Bytes per second to another GPU of the node."""
    host: float
    """Bytes per second to host memory."""
    bf16: bool = True
    """Whether it computes in bf16."""
    fp16: bool = True
    """Whether it computes in fp16."""
    matrix_share: float = MATRIX_SHARE
    """Share of the peak that large matrix products reach."""

    def peak(self, precision: str) -> float:
        """Matrix FLOP/s in `precision`: `fp32`, else a 16-bit format."""
        return self.peak_fp32 if precision == "fp32" else self.peak_16bit


@dataclass(frozen=True)
class Link:
    """One network adapter."""

    bandwidth: float
    """Bytes per second in one direction."""
    latency: float
    """Seconds of one hop."""


_T, _G = 1e12, 1e9

# Name: reported name, memory, 16-bit and fp32 peak, memory bandwidth, link, host link.
# Looked up for this table, on pages about them rather than in the data sheets: a10 (600 GB/s, 31.2 fp32),
# b200 (HGX, 1,000 W: 2,250 dense in bf16, 8 TB/s, 900 GB/s NVLink; fp32 is given as 75 or 80), mi300x (304
# units, 163.4 fp32, 5.3 TB/s, 448 GB/s links). From memory, not looked up: the bf16 peaks of a10 and mi300x,
# mi300a, mi325x, and every usable memory that is less than the data sheet's.
GPUS = {
    "v100-16": Gpu("V100", 16 * GIB, 125 * _T, 15.7 * _T, 900 * _G, 150 * _G, 16 * _G, bf16=False),
    "v100-32": Gpu("V100", 32 * GIB, 125 * _T, 15.7 * _T, 900 * _G, 150 * _G, 16 * _G, bf16=False),
    "t4": Gpu("T4", 14.5 * GIB, 65 * _T, 8.1 * _T, 320 * _G, 16 * _G, 16 * _G, bf16=False),
    "a10": Gpu("A10", 22 * GIB, 125 * _T, 31.2 * _T, 600 * _G, 32 * _G, 32 * _G),
    "a10g": Gpu("A10G", 22 * GIB, 70 * _T, 35 * _T, 600 * _G, 32 * _G, 32 * _G),
    "a30": Gpu("A30", 23.5 * GIB, 165 * _T, 10.3 * _T, 933 * _G, 32 * _G, 32 * _G),
    "a40": Gpu("A40", 44.4 * GIB, 149.7 * _T, 37.4 * _T, 696 * _G, 32 * _G, 32 * _G),
    "a100-40": Gpu("A100", 40 * GIB, 312 * _T, 19.5 * _T, 1555 * _G, 300 * _G, 32 * _G),
    "a100-80": Gpu("A100", 80 * GIB, 312 * _T, 19.5 * _T, 2039 * _G, 300 * _G, 32 * _G),
    "h100": Gpu("H100", 80 * GIB, 989 * _T, 67 * _T, 3350 * _G, 450 * _G, 64 * _G, matrix_share=HOPPER_SHARE),
    "h100-pcie": Gpu(
        "H100 PCIe", 79 * GIB, 756 * _T, 51 * _T, 2000 * _G, 64 * _G, 64 * _G, matrix_share=HOPPER_SHARE
    ),
    "h200": Gpu(
        "H200", 139 * GIB, 989 * _T, 67 * _T, 4800 * _G, 450 * _G, 64 * _G, matrix_share=HOPPER_SHARE
    ),
    "b200": Gpu(
        "B200", 178 * GIB, 2250 * _T, 75 * _T, 8000 * _G, 900 * _G, 64 * _G, matrix_share=HOPPER_SHARE
    ),
    "l4": Gpu("L4", 22 * GIB, 121 * _T, 30.3 * _T, 300 * _G, 32 * _G, 32 * _G),
    "l40": Gpu("L40", 44.4 * GIB, 181 * _T, 90.5 * _T, 864 * _G, 32 * _G, 32 * _G),
    "l40s": Gpu("L40S", 45 * GIB, 362 * _T, 91.6 * _T, 864 * _G, 32 * _G, 32 * _G),
    "rtx-3090": Gpu("RTX 3090", 24 * GIB, 71 * _T, 35.6 * _T, 936 * _G, 32 * _G, 32 * _G),
    "rtx-4090": Gpu("RTX 4090", 24 * GIB, 165.2 * _T, 82.6 * _T, 1008 * _G, 32 * _G, 32 * _G),
    "rtx-a6000": Gpu("RTX A6000", 47.5 * GIB, 154.8 * _T, 38.7 * _T, 768 * _G, 32 * _G, 32 * _G),
    "rtx-6000-ada": Gpu("RTX 6000 Ada", 47.5 * GIB, 364.2 * _T, 91.1 * _T, 960 * _G, 32 * _G, 32 * _G),
    "mi300a": Gpu(
        "MI300A", 120 * GIB, 980.6 * _T, 122.6 * _T, 5300 * _G, 384 * _G, 64 * _G, matrix_share=HOPPER_SHARE
    ),
    "mi300x": Gpu(
        "MI300X", 192 * GIB, 1307.4 * _T, 163.4 * _T, 5300 * _G, 448 * _G, 64 * _G, matrix_share=HOPPER_SHARE
    ),
    "mi325x": Gpu(
        "MI325X", 256 * GIB, 1307.4 * _T, 163.4 * _T, 6000 * _G, 448 * _G, 64 * _G, matrix_share=HOPPER_SHARE
    ),
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


def find_gpu(reported: str) -> Gpu | None:
    """The GPU that a driver reports as `reported`, such as "NVIDIA A100-SXM4-80GB"; None if it is unknown.

    For a model with several memory sizes, whose peaks are the same, the smallest one.
    """
    for gpu in sorted(GPUS.values(), key=lambda gpu: (-len(gpu.reported), gpu.memory)):
        if re.search(rf"(?<![A-Za-z0-9]){re.escape(gpu.reported)}(?![0-9])", reported):
            return gpu
    return None
