"""Compile the Triton kernels for a GPU that this machine may not have: ARCH DTYPE WIDTH FEATURES LOSS,
where features are plain, mask-dropout, or alone for the losses without values."""

from __future__ import annotations

import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gaguide.guidance import triton_kernels as kernels
from gaguide.guidance.losses import ROW_LOSSES
from gaguide.guidance.triton_attention import block_size

SHARED_BYTES = 160 * 1024
FP32 = {
    *("columns", "levels", "weights", "seen", "logsum", "squares", "pulls", "shifts", "losses"),
    *("seen_masses", "grads", "deltas"),
}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def main(arch: str, dtype: str, width: str, features: str, loss: str) -> None:
    block, more = block_size(DTYPES[dtype], int(width)), features == "mask-dropout"
    shape = {"R": block, "C": block, "D": int(width), "HAS_MASK": more, "DROPS": more, "PRECISION": "ieee"}
    shape["HAS_OFFSETS"], shape["LOSS"] = more, list(ROW_LOSSES).index(loss)
    shape["VALUES"] = features != "alone"
    if dtype != "fp32":
        shape["PRECISION"] = "tf32"
    scalars = {"scale": "fp32", "dropout": "fp32", "seed": "i64", "offsets": "*i32"}
    scalars["mask"] = "*u8" if more else f"*{dtype}"
    for kernel in (kernels.forward, kernels.backward_queries, kernels.backward_keys):
        signature = {}
        for name in kernel.arg_names:
            if name in shape:
                signature[name] = "constexpr"
            elif name in FP32:
                signature[name] = "*fp32"
            elif name in ("q", "k", "v", "do", "dq", "dk", "dv", "out"):
                signature[name] = f"*{dtype}"
            else:
                signature[name] = scalars.get(name, "i32")
        source = ASTSource(kernel, signature, {key: shape[key] for key in kernel.arg_names if key in shape})
        compiled = triton.compile(source, target=GPUTarget("cuda", int(arch), 32))
        assert "cubin" in compiled.asm
        assert compiled.metadata.shared <= SHARED_BYTES, (kernel, compiled.metadata.shared)
        print(kernel.fn.__name__, "shared", compiled.metadata.shared)


if __name__ == "__main__":
    main(*sys.argv[1:])
