"""All batches scored by all ranks, each batch by one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gaguide.distributed import World, all_gather
from gaguide.evaluate.schedule.batches import Batch
from gaguide.evaluate.schedule.ranks import assign_batches
from gaguide.evaluate.score.logits import Scores
from gaguide.evaluate.score.progress import ScoringProgress
from gaguide.evaluate.score.saved_scores import SavedScores
from gaguide.evaluate.score.scorer import Scorer, Sharing
from gaguide.log import say


def agree_on_sharing(scorer: Scorer, batches: Sequence[Batch], world: World) -> None:
    """Set `scorer.sharing` to what the model supports on every rank; reports where that is less than all."""
    difference = scorer.detect_sharing(batches)
    scorer.sharing = min(all_gather(scorer.sharing))
    if not world.is_main or scorer.sharing == Sharing.PREFIXES:
        return
    if scorer.sharing == Sharing.ROWS:
        say("this model's attention does not accept cached prefixes: slower, computed in each batch")
    else:
        say(
            f"this model does not support shared prefixes (difference {difference:.2g}): slower, each "
            "sequence is computed separately"
        )


def score_all(
    scorer: Scorer,
    batches: Sequence[Batch],
    left: Sequence[int],
    saved: SavedScores,
    world: World,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Score the batches numbered `left`; afterwards `saved` has their scores on every rank.

    tick: called between batches.
    """
    shares = assign_batches([batches[at] for at in left], world.size)
    mine = [left[place] for place in shares[world.rank]]
    progress = ScoringProgress(sum(batches[at].cost for at in mine), shown=world.is_main)
    scores: dict[int, Scores] = {}
    for at in mine:
        tick()
        rows, prefix = batches[at].rows, batches[at].prefix
        scores[at] = scorer.generate(rows) if batches[at].generates else scorer.score(rows, prefix)
        saved.save(at, scores[at], scorer.sharing)
        progress.advance(batches[at].cost)
    if scorer.whole_model:
        passes = [scorer.count_passes([batches[left[place]] for place in share]) for share in shares]
        for _ in range(max(passes) - passes[world.rank]):
            tick()
            scorer.run_idle_pass()
    progress.close()
    saved.close()
    for part in all_gather(scores):
        assert saved.scores.keys().isdisjoint(part), "a batch was scored by two ranks"
        saved.scores |= part
