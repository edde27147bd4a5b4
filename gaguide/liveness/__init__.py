"""Whether every rank is alive: launchers, heartbeats, preemption, hang verdicts."""
