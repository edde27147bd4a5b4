"""Control words: as frequent as a lexicon's, none of its own or another's, the same for the same seed."""

from __future__ import annotations

import runpy
from collections import Counter

from tests.support.ranks import REPOSITORY

PROGRAM = runpy.run_path(str(REPOSITORY / "examples" / "pretrained" / "control_words.py"))
COUNTS = Counter(
    {"not": 1000, "but": 990, "he": 1005, "she": 995, "rare": 10, "odd": 11, "never": 1001, "yet": 9}
)


def test_controls_are_as_frequent_and_not_taken() -> None:
    for seed in range(5):
        chosen = PROGRAM["choose_control"](COUNTS, ["not", "but", "yet", "absent"], {"never"}, seed)
        assert set(chosen) == {"not", "but", "yet"}
        assert {chosen["not"], chosen["but"]} == {"he", "she"} and chosen["yet"] == "rare"
        assert chosen == PROGRAM["choose_control"](COUNTS, ["yet", "but", "not"], {"never"}, seed)
