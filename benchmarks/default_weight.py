"""The measurement behind the default loss: the embedded run with several losses and weights.

    python benchmarks/default_weight.py [--steps 300] [--seed 0] [--output runs/default-weight]

Each row is one run of `launch/train.py` with the embedded configuration and the same seed, on one rank
(losses do not depend on the number of ranks). The numbers are those of its summary.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from gaguide.ports import free_port

REPOSITORY = Path(__file__).parents[1]
SETTINGS = {
    "squared": [
        ("mean", "indicator", 0.0), ("mean", "indicator", 1.0), ("mean", "indicator", 3.0),
        ("mean", "indicator", 10.0), ("mean", "indicator", 30.0), ("mean", "indicator", 100.0),
        ("mean", "normalized", 3.0), ("mean", "normalized", 10.0), ("frobenius", "indicator", 0.001),
        ("frobenius", "indicator", 0.01),
    ],
    "log-mass": [("mean", "indicator", weight) for weight in (0.003, 0.01, 0.03)],
    "kl": [("mean", "indicator", weight) for weight in (0.003, 0.01, 0.03)],
    "hinge": [("mean", "indicator", weight) for weight in (0.003, 0.01, 0.03)],
    "avoid": [("mean", "indicator", weight) for weight in (0.0, 0.003, 0.01, 0.03)],
}  # fmt: skip
"""By loss: reduction, target, weight."""
AVOIDED = [{"pattern": "previous-token", "heads": 0}]
"""Targets for `avoid`: heads of a small model hardly attend to the words and could not avoid them."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/default-weight"))
    parser.add_argument("--losses", default=",".join(SETTINGS), help="after the unguided run")
    arguments = parser.parse_args()
    chosen = [("squared", *setting) for setting in SETTINGS["squared"][:1]]
    for loss in arguments.losses.split(","):
        chosen += [(loss, *setting) for setting in SETTINGS[loss] if (loss, *setting) not in chosen]
    table = Table(
        "loss",
        "reduction",
        "target",
        "weight",
        "attention by layer",
        "held-out loss",
        "compared with unguided",
    )
    baseline = None
    for loss, reduction, target, weight in chosen:
        kind = f"{reduction}-{target}" if loss == "squared" else loss
        output = arguments.output / f"{kind}-{weight:g}-seed{arguments.seed}"
        settings = {"loss": loss, "reduction": reduction, "target": target, "weight": f"{weight:g}"}
        after = train(output, arguments, settings)
        baseline = baseline or after["lm_loss"]
        masses = " ".join(f"{head['attention']:.2f}" for head in after["per_head"])
        change = f"{after['lm_loss'] / baseline - 1:+.2%}"
        table.add_row(loss, reduction, target, f"{weight:g}", masses, f"{after['lm_loss']:.4f}", change)
    Console(width=110).print(table)


def train(output: Path, arguments: argparse.Namespace, guidance: dict[str, str]) -> dict:
    if guidance["loss"] == "avoid":
        guidance = guidance | {"experiment": "finetuned", "plan": json.dumps(AVOIDED)}
    command = [
        *(str(Path(sys.executable).parent / "deepspeed"), "--num_accelerators", "1"),
        *("--master_port", str(free_port())),
        *(str(REPOSITORY / "launch/train.py"), "--deepspeed", str(REPOSITORY / "ds_configs/zero2.json")),
        *("--output", str(output), "--seed", str(arguments.seed), "--train.steps", str(arguments.steps)),
        *(part for name, value in guidance.items() for part in (f"--guidance.{name}", value)),
    ]
    if not (output / "summary.json").exists():
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return json.loads((output / "summary.json").read_text())["validation"]["after"]


if __name__ == "__main__":
    main()
