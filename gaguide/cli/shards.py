"""A folder of shards in a few lines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gaguide.data import Manifest


def describe_shards(folder: Path | str, manifest: Manifest) -> str:
    """A few lines that describe a folder of shards."""
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in manifest.dropped.items()) or "none"
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in manifest.left_out.items()) or "no file"
    begin = "nothing" if manifest.bos_token_id is None else f"id {manifest.bos_token_id}"
    end = "nothing" if manifest.separator_token_id is None else f"id {manifest.separator_token_id}"
    lines = [
        f"{folder}: {manifest.documents:,} documents, {manifest.tokens:,} tokens ({manifest.token_dtype})",
        f"  source      {manifest.source}" + (f" @ {manifest.revision}" if manifest.revision else ""),
        f"  dropped     {dropped}",
        f"  left out    {left_out}",
        *_describe_decontamination(manifest),
        f"  tokenizer   {manifest.vocab_size:,} ids, fingerprint {manifest.tokenizer_fingerprint[:12]}",
    ]
    if manifest.source_identity:  # else an older version wrote the folder
        lines.append(f"  documents   begin with {begin}, end with {end}")
    if manifest.marks:
        lines.append(f"  marks       {', '.join(manifest.marks)}")
    for split, shards in manifest.splits.items():
        documents, tokens = sum(s.documents for s in shards), sum(s.tokens for s in shards)
        count = f"{len(shards):,} shard{'s' if len(shards) > 1 else ''}"
        lines.append(f"  {split:<11} {documents:,} documents, {tokens:,} tokens in {count}")
    return "\n".join([*lines, f"  fingerprint {manifest.fingerprint[:12]}"])


def _describe_decontamination(manifest: Manifest) -> list[str]:
    found = manifest.decontamination
    if not found:
        return []
    verb = {"drop": "left out", "mask": "masked"}[found["action"]]
    short = f"; {found['too_short']:,} too short" if found["too_short"] else ""
    return [
        f"  evaluation  {found['documents']:,} documents contained examples of {', '.join(found['tasks'])} "
        f"and were {verb} ({found['compared']:,} examples looked for{short}): {found['list']}"
    ]
