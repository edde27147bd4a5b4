"""Jobs for Slurm: what is asked of it, the script that asks, and handing it in."""

from gaguide.slurm.render import render
from gaguide.slurm.request import Kind, Request
from gaguide.slurm.submit import Prepared, prepare, submit, waits_for

__all__ = ["Kind", "Prepared", "Request", "prepare", "render", "submit", "waits_for"]
