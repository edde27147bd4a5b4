"""summary.json: a run's settings and results, for reports."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

from gaguide.distributed import World
from gaguide.files import write_json
from gaguide.log import code_commit, code_fingerprint, read_metrics
from gaguide.train.job import Job

_PACKAGES = ("gaguide", "torch", "deepspeed", "transformers", "tokenizers", "pyarrow")


def write_summary(job: Job, world: World) -> None:
    """Write summary.json from the run's records, which include the steps before a resume."""
    steps = read_metrics(job.output / "metrics.jsonl")
    validations = read_metrics(job.output / "validation.jsonl")
    write_json(
        job.output / "summary.json",
        {
            "name": job.run.name,
            "experiment": job.plan.name if job.plan else "finetuned",
            "guidance_weight": job.run.guidance.weight if job.plan else 0.0,
            "steps": job.total_steps,
            "tokens": job.total_steps * job.batch.global_batch * job.run.data.block_length,
            "seconds": steps[-1]["seconds"] if steps else 0.0,
            "world_size": world.size,
            "zero_stage": job.deepspeed.zero_stage,
            "validation": {"before": _measured(validations[0]), "after": _measured(validations[-1])},
            "best_checkpoint": _best(job),
            "versions": _versions(),
            "fingerprints": {
                "run": job.fingerprint,
                "code": code_fingerprint(),
                "data": job.corpus.fingerprint,
                "tokenizer": job.corpus.tokenizer_fingerprint,
                "order": job.corpus.order.fingerprint,
            },
        },
    )


def _versions() -> dict[str, str]:
    commit = code_commit()
    found = {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()}
    return found if commit is None else found | {"commit": commit}


def _measured(record: dict[str, Any]) -> dict[str, Any]:
    return {
        "lm_loss": record["lm_loss"],
        "guided_attention": record["guided_attention"],
        "per_head": record["per_head"],
        "blocks": record["sequences"],
    }


def _best(job: Job) -> str | None:
    pointer = job.output / "checkpoints" / "best"
    return pointer.read_text("utf-8").strip() if pointer.exists() else None
