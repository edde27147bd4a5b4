"""Writes the files of this folder by the libraries whose formats they have.

python make.py FOLDER          (mosaicml-streaming 0.13.0, megatron-core 0.16.1)
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

DOCUMENTS = [np.array([1, 2, 3, 0]), np.array([500, 0]), np.arange(1, 300)]


def main(folder: Path) -> None:
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
    from streaming import MDSWriter

    with MDSWriter(out=str(folder / "mds"), columns={"tokens": "ndarray:uint16"}) as writer:
        for ids in DOCUMENTS:
            writer.write({"tokens": ids.astype(np.uint16)})
    columns = {"id": "int", "tokens": "ndarray:int32:4", "text": "str"}
    with MDSWriter(out=str(folder / "packed"), columns=columns, compression="zstd", size_limit=120) as writer:
        for at in range(5):
            row = np.array([at, at + 1, 0, at + 2], np.int32)
            writer.write({"id": at, "text": "x" * at, "tokens": row})
    with MDSWriter(out=str(folder / "bytes"), columns={"tokens": "bytes"}) as writer:
        for ids in DOCUMENTS[:2]:
            writer.write({"tokens": ids.astype(np.int64).tobytes()})
    with MDSWriter(out=str(folder / "dynamic"), columns={"tokens": "ndarray"}) as writer:
        for ids in DOCUMENTS[:2]:
            writer.write({"tokens": ids.astype(np.int64)})
    builder = IndexedDatasetBuilder(str(folder / "m.bin"), dtype=np.uint16)
    for ids in DOCUMENTS:
        builder.add_item(torch.from_numpy(ids))
        builder.end_document()
    builder.finalize(str(folder / "m.idx"))
    builder = IndexedDatasetBuilder(str(folder / "s.bin"), dtype=np.int32)
    builder.add_document(torch.arange(1, 7), [2, 0, 4])
    builder.add_item(torch.tensor([7, 8]))
    builder.add_item(torch.tensor([9]))
    builder.end_document()
    builder.finalize(str(folder / "s.idx"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
