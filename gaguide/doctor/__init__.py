"""`gaguide doctor`: what of this machine and environment would fail, and how to mend it.

Light on purpose: whatever may hang or kill a process (torch, DeepSpeed, MPI) is imported in child
processes only, see probes.py.
"""

from gaguide.doctor.check import Check, Status
from gaguide.doctor.diagnose import diagnose

__all__ = ["Check", "Status", "diagnose"]
