"""Time spent in steps, and the resulting throughput."""

from __future__ import annotations

import time


class Clock:
    """Seconds spent in steps, validation and saving excluded; `total` continues after a resume."""

    def __init__(self) -> None:
        self.total = 0.0
        self._seconds = 0.0
        self._tokens = 0
        self._started = 0.0
        self._step_tokens = 0

    def running(self, tokens: int) -> Clock:
        """A context that times a step of `tokens` tokens."""
        self._step_tokens = tokens
        return self

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        seconds = time.perf_counter() - self._started
        self.total += seconds
        self._seconds += seconds
        self._tokens += self._step_tokens

    def exclude(self, seconds: float) -> None:
        """Leave `seconds` of the last step out of the throughput: those of compiling. `total` keeps them."""
        self._seconds -= seconds

    def tokens_per_second(self) -> float:
        """Tokens per second over the steps since the last call."""
        rate = self._tokens / self._seconds
        self._seconds, self._tokens = 0.0, 0
        return rate
