"""Slurm jobs: the request of a job, its script, and submitting it."""

from gaguide.slurm.render import render
from gaguide.slurm.request import JobKind, JobRequest
from gaguide.slurm.submit import PreparedJob, check_array, pending_reason, prepare, run_sbatch, submit

__all__ = [
    "JobKind",
    "JobRequest",
    "PreparedJob",
    "check_array",
    "pending_reason",
    "prepare",
    "render",
    "run_sbatch",
    "submit",
]
