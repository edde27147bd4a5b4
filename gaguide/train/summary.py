"""summary.json: a run's settings and results, for reports."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

from gaguide.distributed import World
from gaguide.errors import mask_credentials
from gaguide.files import read_object, write_json
from gaguide.log import code_commit, code_fingerprint, read_metrics, run_files
from gaguide.publish.base import read_base_model
from gaguide.train.job import Job

_PACKAGES = ("gaguide", "torch", "deepspeed", "transformers", "tokenizers", "pyarrow")


def write_summary(
    job: Job,
    world: World,
    trained: bool,
    dropped_steps: int,
    history: list[dict[str, Any]],
    diverged: str | None = None,
) -> None:
    """Write summary.json from the run's records, which include the steps before a resume.

    `history` lists the resumes that changed settings; `diverged` is the reason why the trained model is
    unusable. If this start `trained` no step, an earlier start's own entries (ranks, versions) are kept.
    """
    steps = read_metrics(job.output / run_files.METRICS)
    before, after = validation_at(job, 0), validation_at(job, job.total_steps)
    made_by = {
        "world_size": world.size,
        "zero_stage": job.deepspeed.zero_stage,
        "versions": versions(),
        "fingerprints": {
            "run": job.fingerprint,
            "code": code_fingerprint(),
            "data": job.corpus.fingerprint,
            "tokenizer": job.corpus.tokenizer_fingerprint,
            "order": job.corpus.order.fingerprint,
        },
    }
    if not trained:
        made_by |= {
            name: value
            for name, value in read_object(job.output / run_files.SUMMARY).items()
            if name in made_by
        }
    write_json(
        job.output / run_files.SUMMARY,
        {
            "name": job.run.name,
            "experiment": job.plan.name if job.plan else "finetuned",
            "guidance_weight": job.run.guidance.weight if job.plan else 0.0,
            "steps": job.total_steps,
            "dropped_steps": dropped_steps,
            "diverged": diverged,
            "changes": history,
            "tokens": job.total_steps * job.batch.global_batch * job.run.data.block_length,
            "seconds": max((float(record.get("seconds") or 0) for record in steps), default=0.0),
            "base_model": read_base_model(
                job.run.model.name, job.run.model.init == "pretrained", job.model.fingerprint
            ).as_record(),
            "trained_parameters": job.trained,
            "adapter": None if job.adapter is None else job.adapter.as_record(),
            "sources": [mask_credentials(source) for source in job.corpus.sources],
            "mixture": job.mixture(),
            "heads": _heads(job),
            "patterns": {} if job.plan is None else job.plan.entries(job.corpus.tokenizer),
            "validation": {
                "before": None if before is None else _measured(before),
                "after": None if after is None else _measured(after),
            },
            "best_checkpoint": _best(job),
            **made_by,
        },
    )


def _heads(job: Job) -> list[dict[str, Any]]:
    """Guided (or, at weight 0, measured) heads with their pattern and weight within the plan."""
    if job.plan is None:
        return []
    shape = job.model.config.get_text_config()
    heads = job.plan.resolve(shape.num_hidden_layers, shape.num_attention_heads)
    return [
        {"layer": layer, "head": head, "pattern": guided.pattern.name, "weight": guided.weight}
        for (layer, head), guided in heads.items()
    ]


def validation_at(job: Job, step: int) -> dict[str, Any] | None:
    """The record of the held-out loss after `step`, if it is of the run's present measure."""
    found = None
    for record in read_metrics(job.output / run_files.VALIDATIONS):
        if record.get("step") == step and record.get("measure") == job.measure:
            found = record
    return found


def versions() -> dict[str, str]:
    """Versions of the packages that training depends on, of Python, and the commit of gaguide's checkout."""
    commit = code_commit()
    found = {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()}
    return found if commit is None else found | {"commit": commit}


def _measured(record: dict[str, Any]) -> dict[str, Any]:
    return {
        "lm_loss": record.get("lm_loss"),
        "guided_attention": record.get("guided_attention"),
        "per_head": record.get("per_head"),
        "blocks": record.get("sequences"),
        "measure": record.get("measure"),
        "near_cue": record.get("near_cue"),
    }


def _best(job: Job) -> str | None:
    pointer = job.output / "checkpoints" / "best"
    return pointer.read_text("utf-8").strip() if pointer.exists() else None
