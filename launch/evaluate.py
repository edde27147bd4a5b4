"""deepspeed launch/evaluate.py --model DIR… --tasks NAME|FILE|DIR… --output DIR

The same program as `python -m gaguide.evaluate`.
"""

from gaguide.evaluate.__main__ import run

if __name__ == "__main__":
    run()
