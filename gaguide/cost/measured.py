"""The speed of a real run, which takes the place of the constants in hardware.py."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median, quantiles

from gaguide.config import load_config
from gaguide.cost.assemble import find_config, find_shape
from gaguide.cost.deepspeed import with_deepspeed
from gaguide.cost.estimate import estimate
from gaguide.cost.published import SpeedRange
from gaguide.cost.request import CostRequest, trains_part, with_run
from gaguide.engine.config import load_deepspeed_json
from gaguide.errors import UserError
from gaguide.files import read_object
from gaguide.log import read_metrics, run_files

_FIELD = "--measured"


@dataclass(frozen=True)
class Measured(SpeedRange):
    """The speed of a run, and how it compares with the prediction for that run."""

    tokens_per_second: float
    """Median over the logged steps, of all ranks together."""
    slowest: float
    """The tenth percentile, as a multiple of the median."""
    fastest: float
    """The ninetieth percentile, as a multiple of the median."""
    steps: int
    """Logged steps that were used: all but the first, in which kernels are compiled."""
    ranks: int
    """Number of ranks of the run."""
    pace: float
    """The measured speed as a multiple of the predicted one: `CostRequest.pace`."""


def read_measured(metrics: Path, request: CostRequest) -> Measured:
    """The speed recorded in a run's metrics.jsonl; `request` says on which GPUs, network and nodes it ran.

    The run's settings are read from the files next to it. Raises a `UserError` where they are missing or the
    run has logged fewer than three steps.
    """
    if metrics.is_dir():
        metrics = metrics / run_files.METRICS
    if not metrics.is_file():
        raise _fault("does not exist", "give the metrics.jsonl of a run, or the run's folder", metrics)
    speeds = [record.get("tokens_per_second") for record in read_metrics(metrics)][1:]
    found = [float(speed) for speed in speeds if isinstance(speed, int | float) and speed > 0]
    if len(found) < 2:
        problem = f"has the speed of {len(found)} steps after the first"
        raise _fault(problem, "give a run with at least two more logged steps (train.log_every)", metrics)
    own = _request_of(metrics.parent, request)
    deciles = quantiles(found, n=10, method="inclusive")
    middle = median(found)
    predicted = estimate(replace(own, pace=1.0)).tokens_per_second
    return Measured(
        middle, deciles[0] / middle, deciles[-1] / middle, len(found), own.ranks, middle / predicted
    )


def _request_of(folder: Path, request: CostRequest) -> CostRequest:
    for name in (run_files.CONFIG, run_files.DEEPSPEED):
        if not (folder / name).is_file():
            remedy = "give the metrics.jsonl in the output folder of a run, where its settings lie"
            raise _fault(f"has no {name} next to it", remedy, folder / run_files.METRICS)
    run = load_config(folder / run_files.CONFIG, {})
    ranks = _ranks(folder)
    gpus = min(request.gpus, ranks)
    if ranks % gpus:
        problem = f"is of a run with {ranks} ranks, which {gpus} GPUs per node do not divide"
        raise _fault(problem, "give the run's GPUs per node as --gpus", folder / run_files.METRICS)
    base = replace(
        CostRequest(find_shape(None, run), gpu=request.gpu, link=request.link, cards=request.cards),
        gpus=gpus,
        nodes=ranks // gpus,
    )
    config = find_config(None, run) if trains_part(run) else None
    return with_deepspeed(with_run(base, run, config), load_deepspeed_json(folder / run_files.DEEPSPEED), run)


def _ranks(folder: Path) -> int:
    """The number of ranks, from the summary of a finished run, else from its newest checkpoint."""
    manifests = sorted((folder / "checkpoints").glob("step-*/manifest.json"), reverse=True)
    for path in (folder / run_files.SUMMARY, *manifests):
        if isinstance(ranks := read_object(path).get("world_size"), int):
            return ranks
    problem = "is of a run that has neither a summary.json nor a checkpoint, so its ranks are unknown"
    raise _fault(problem, "give a run that has saved a checkpoint", folder / run_files.METRICS)


def _fault(problem: str, remedy: str, path: Path) -> UserError:
    return UserError.of(_FIELD, problem, remedy, str(path))
