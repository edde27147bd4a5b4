"""Records of an unfinished build, in its folder `.build`: the pieces of each part of the source so far.

A piece is one training shard and the held-out documents met while filling it, under temporary names. Its
record is written last, so a piece exists if and only if its record does.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gaguide.data.format.manifest import ShardInfo
from gaguide.files import write_text

FAILURE_FILE = "failed.txt"
"""In the build's folder: why a build in the background has failed."""


@dataclass(frozen=True)
class Piece:
    """The record of one piece."""

    part: int
    """Index of the part of the source."""
    number: int
    """Index of the piece within its part."""
    rows: int
    """Rows read from the start of the part up to the end of this piece."""
    bytes: int
    """Bytes of text read from the start of the part up to the end of this piece."""
    last: bool
    """Whether the part ends with this piece."""
    dropped: dict[str, int]
    """Number of rows of this piece that gave no document, by reason."""
    shards: dict[str, ShardInfo]
    """The shard of each split; splits without a document are missing."""
    contaminated: list[dict[str, Any]] = field(default_factory=list)
    """The documents of this piece that contain evaluation examples."""

    @property
    def documents(self) -> int:
        """Number of documents in this piece."""
        return sum(shard.documents for shard in self.shards.values())


def read_pieces(folder: Path, part: int) -> list[Piece]:
    """The pieces of a part that exist so far, in order."""
    pieces: list[Piece] = []
    for number in itertools.count():
        path = _record_path(folder, part, number)
        if not path.is_file():
            return pieces
        content = json.loads(path.read_text(encoding="utf-8"))
        shards = {split: ShardInfo(**shard) for split, shard in content.pop("shards").items()}
        pieces.append(Piece(shards=shards, **content))
    return pieces


def is_part_complete(folder: Path, part: int) -> bool:
    """Whether all pieces of a part exist."""
    pieces = read_pieces(folder, part)
    return bool(pieces) and pieces[-1].last


def write_record(folder: Path, piece: Piece) -> None:
    """Write the record of a piece whose shards are written."""
    write_text(_record_path(folder, piece.part, piece.number), json.dumps(asdict(piece)))


def piece_file(part: int, number: int, split: str) -> str:
    """Name of a piece's shard of one split."""
    return f"part-{part:05d}-{number:03d}.{split}.arrow"


def _record_path(folder: Path, part: int, number: int) -> Path:
    return folder / f"part-{part:05d}-{number:03d}.json"
