"""The table in ds_configs/README.md agrees with `gaguide plan`."""

from __future__ import annotations

import pytest

from gaguide.cost import assemble_request, estimate
from tests.support.ranks import DS_CONFIGS

GIGABYTE = 1e9


def cell(model: str, ranks: int, config: str) -> str:
    """Gigabytes on each GPU; behind them those of the host's memory, or of the disk, of each rank."""
    accumulation = 1 if config == "zero1" else 2
    options = {"gpus": ranks, "micro_batch": 1, "global_batch": accumulation * ranks, "checkpointing": True}
    request, _ = assemble_request(model, None, DS_CONFIGS / f"{config}.json", options)
    memory = estimate(request).memory
    elsewhere = memory.disk or memory.host
    if not elsewhere:
        return f"{memory.peak / GIGABYTE:.1f}"
    size = elsewhere / GIGABYTE
    return (
        f"{memory.peak / GIGABYTE:.1f} ({size:.0f})"
        if size >= 1
        else f"{memory.peak / GIGABYTE:.1f} ({size:.1f})"
    )


def rows() -> list[list[str]]:
    """(model, ranks, cell, cell, …) of every row, and the head row first."""
    lines = (DS_CONFIGS / "README.md").read_text("utf-8").splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith("| | ranks | zero1"))
    table = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        table.append([part.strip() for part in line.strip("|").split("|")])
    return [table[0], *table[2:]]


def test_which_json_for_which_model() -> None:
    head, *body = rows()
    assert len(body) == 10
    model = ""
    wrong = []
    for name, ranks, *cells in body:
        model = name or model
        wanted = [cell(model, int(ranks), config) for config in head[2:]]
        if cells != wanted:
            wrong.append(f"| {name} | {ranks} | {' | '.join(wanted)} |")
    if wrong:
        pytest.fail("these rows should be\n" + "\n".join(wrong))
