"""deepspeed launch/train.py --deepspeed DS.json [--config RUN.yaml] [--section.field VALUE …]

The same program as `python -m gaguide.train`.
"""

from gaguide.train.__main__ import run

if __name__ == "__main__":
    run()
