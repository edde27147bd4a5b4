"""The inputs of each optimizer step: this rank's blocks, and the divisor of the loss.

Shapes: A micro batches of a step, M sequences.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import torch

from gaguide.data import rank_micro_batches
from gaguide.data.read.blocks import leaves_out
from gaguide.distributed import World, all_reduce_sum, alone, raise_together
from gaguide.engine.engine import Engine
from gaguide.errors import UserError
from gaguide.guidance import Guidance, marked
from gaguide.liveness.preemption import Preemption
from gaguide.liveness.watchdog import Watchdog
from gaguide.train.inputs import InputReader, Inputs, count_targets
from gaguide.train.job import Job


class StepInputs:
    """This rank's share of every global batch, in the order of the run's seed, and its reader."""

    def __init__(
        self,
        job: Job,
        world: World,
        engine: Engine,
        guidance: Guidance | None,
        preemption: Preemption,
        watchdog: Watchdog,
    ) -> None:
        self.job, self.world, self.engine, self.guidance = job, world, engine, guidance
        self.preemption, self.watchdog = preemption, watchdog
        self.device = engine.device
        self.reader = InputReader(
            job.corpus.blocks,
            job.run.data.isolate_documents,
            engine.device,
            () if guidance is None else guidance.plan.marks,
        )

    def micro_batches(self, step: int) -> Iterator[Inputs]:
        """This rank's micro batches of a step; seeds dropout, so that a repeated step drops the same."""
        _seed_dropout(self.device, self.job.run.seed, step, self.world.rank)
        with alone():
            self.job.corpus.look_ahead(self.job.first_block(step))
        ids_AM = self._block_ids(step)
        share = self._targets_of_micro_batch(ids_AM)
        for at, ids_M in enumerate(ids_AM):
            self.watchdog.mark(step, "reading blocks")
            with alone():
                batch = self.reader.take(ids_M)
            inputs = batch.inputs if share is None else {**batch.inputs, "num_items_in_batch": share}
            if at + 1 == len(ids_AM):
                self.preemption.share()
            self.watchdog.mark(step, "forward and backward")
            with marked(batch.marks):
                yield inputs
            # A GPU is still computing. The next blocks of a source in progress may not exist yet.
            if at + 1 < len(ids_AM):
                self.reader.read_ahead(ids_AM[at + 1])
            elif step < self.job.total_steps and self.job.corpus.build is None:
                self.reader.read_ahead(self._block_ids(step + 1)[0])

    def _targets_of_micro_batch(self, ids_AM: np.ndarray) -> torch.Tensor | None:
        """Tokens that the loss counts in a mean micro batch of the step; None where it counts all.

        Divided by it, the sums over micro batches have the mean over the tokens of the global batch as their
        mean, however these are spread. A collective.
        """
        blocks = self.job.corpus.blocks
        if not leaves_out(blocks):
            return None
        with alone():
            own = sum(count_targets(blocks, ids_M) for ids_M in ids_AM)
        total = all_reduce_sum(torch.tensor(float(own), dtype=torch.float64, device=self.device))
        return (total / (len(ids_AM) * self.world.size)).clamp(min=1e-9).float()

    def _block_ids(self, step: int) -> np.ndarray:
        """Blocks [A, M] of this rank's micro batches in a step; for a source in progress, a collective."""
        batch, corpus = self.job.batch, self.job.corpus
        position = self.job.global_batch(step)

        def block_ids() -> np.ndarray:
            return rank_micro_batches(
                corpus.order,
                position,
                batch.global_batch,
                batch.micro_batch,
                self.world.rank,
                self.world.size,
            )

        if corpus.build is None:
            return block_ids()
        # A source may turn out to be unreadable while it is tokenised: then all ranks end together.
        ids_AM, error = None, None
        try:
            ids_AM = block_ids()
        except UserError as caught:
            error = caught
        if self.preemption.any_rank(error is not None):
            raise_together(lambda: _raise(error))
        assert ids_AM is not None
        return ids_AM


def _seed_dropout(device: torch.device, *numbers: int) -> None:
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    seed = int.from_bytes(digest[:8], "little") >> 1
    # torch.manual_seed is the same for all devices, but without a GPU it keeps a stack trace of every call.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _raise(error: UserError | None) -> None:
    if error is not None:
        raise error
