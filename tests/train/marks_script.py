"""Run on every rank by test_marks.py: the runs of a JSON file, in one process group. Argument: the file."""

import json
import sys
from pathlib import Path

from gaguide.config import EMBEDDED, load_config
from gaguide.distributed import World, leave, start
from gaguide.train.preflight import prepare
from gaguide.train.run import train


def main(path: str) -> None:
    world = World.from_environment()
    start(world)
    for settings in json.loads(Path(path).read_text("utf-8")):
        ds_json = Path(__file__).parents[2] / "ds_configs" / f"{settings.pop('stage')}.json"
        train(prepare(load_config(EMBEDDED, settings), ds_json, world), world)
    leave(0)


if __name__ == "__main__":
    main(*[argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")])
