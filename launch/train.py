"""deepspeed launch/train.py --deepspeed DS.json [--config RUN.yaml] [--section.field VALUE …]"""

import sys

from gaguide.train.command import main

if __name__ == "__main__":
    sys.exit(main())
