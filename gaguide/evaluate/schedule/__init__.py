"""Who computes what: token sequences → rows → batches → ranks. Pure, and the same on every rank.

    rows.py       sequences that share prefixes, as one row
    prefixes.py   which prefixes are computed once for many rows
    cost.py       what a row costs, and how large batches may be
    batches.py    rows → batches
    ranks.py      batches → ranks
    work.py       all of the above for each model

Batches are formed before the number of ranks is considered, and go to ranks whole. So each example is
computed on one rank, together with the same other examples and hence to the same bits, on any number of
ranks.
"""
