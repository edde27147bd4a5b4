"""`gaguide doctor`: checks what would fail on this machine and in this environment, and how to fix it.

Libraries that may hang or kill a process (torch, DeepSpeed, MPI) are imported in child processes only: see
probes.py.
"""

from gaguide.doctor.check import Check, Status
from gaguide.doctor.diagnose import diagnose

__all__ = ["Check", "Status", "diagnose"]
