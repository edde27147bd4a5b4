"""The run as trackers receive it."""

from __future__ import annotations

import yaml

from gaguide.config import dump_config
from gaguide.files import hash_json
from gaguide.log import code_commit, code_fingerprint, run_files
from gaguide.trackers import TrackedRun
from gaguide.train.job import Job
from gaguide.train.summary import versions


def tracked_run(job: Job, evaluation: str | None) -> TrackedRun:
    """The run of `job`; `evaluation` is the measure of the evaluation during training."""
    tags = {f"version.{name}": value for name, value in versions().items()}
    commit = code_commit()
    if commit is not None:
        tags["mlflow.source.git.commit"] = commit.partition(" ")[0]
    tags |= {
        "gaguide.output": str(job.output.resolve()),
        "gaguide.fingerprint.run": job.fingerprint,
        "gaguide.fingerprint.code": code_fingerprint(),
        "gaguide.fingerprint.data": job.corpus.fingerprint,
        "gaguide.fingerprint.model": job.model.fingerprint,
    }
    return TrackedRun(
        name=job.run.name,
        folder=job.output,
        settings=hash_json([job.fingerprint, job.measure, evaluation]),
        config=yaml.safe_load(dump_config(job.run, masked=True)),
        tags=tags,
        files=(job.output / run_files.CONFIG, job.output / run_files.DEEPSPEED),
        measures={"validation": job.measure, "evaluation": evaluation},
    )
