"""Which examples are demonstrations: drawn once, the first ones, or drawn for each example. Pure.

Prompts with the same demonstrations share a long prefix, which is computed once for many of them. A
demonstration with the content of the example that is asked is replaced by another one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from gaguide.errors import UserError
from gaguide.evaluate.tasks.example import Example
from gaguide.evaluate.tasks.examples import list_some
from gaguide.evaluate.tasks.harness.sampler import Sampler, TooFewError
from gaguide.evaluate.tasks.task import Fewshot, Task


@dataclass(frozen=True)
class Demonstrated:
    """Examples, and the demonstrations of each."""

    examples: tuple[Example, ...]
    """The examples that are asked."""
    shown: tuple[tuple[Example, ...], ...]
    """The demonstrations of each, in their order."""
    available: int
    """Number of examples that could be asked without a limit."""
    warnings: tuple[str, ...]
    """Sentences on examples that were left out or whose demonstrations differ from the rest's."""


def with_demonstrations(
    task: Task,
    fewshot: Fewshot,
    examples: Sequence[Example],
    pool: Sequence[Example] | None,
    limit: int | None,
) -> Demonstrated:
    """The first `limit` of `examples` with their demonstrations.

    pool: examples to draw demonstrations from; None draws them from `examples`. Then the drawn examples, and
    others with their content, are not asked, unless demonstrations are drawn for each example. Raises
    `UserError` if there are too few examples.
    """
    source = examples if pool is None else pool
    needed = fewshot.count + (pool is None)
    if len(source) < needed:
        problem = f"asks for {fewshot.count} demonstrations, but there are {len(source)} examples"
        raise UserError.of(f"task {task.name}: fewshot", problem, "ask for fewer", fewshot.count)
    if fewshot.draw == "each":
        return _ask_each(task, fewshot, examples, pool, limit)
    random_draw = random.Random(fewshot.seed)
    first = list(range(fewshot.count))
    drawn = first if fewshot.draw == "first" else random_draw.sample(range(len(source)), fewshot.count)
    rest = [at for at in range(len(source)) if at not in set(drawn)]
    shown = tuple(source[at] for at in drawn)
    if pool is None:
        return _ask_others(task, [source[at] for at in rest], shown, limit)
    spare = [source[at] for at in random_draw.sample(rest, len(rest))]
    asked = examples[:limit]
    chosen = [tuple(_not_revealing(example, shown, spare)) for example in asked]
    return _ask_all(task, examples, asked, [shown] * len(asked), chosen)


def _ask_others(
    task: Task, others: Sequence[Example], shown: tuple[Example, ...], limit: int | None
) -> Demonstrated:
    """Ask the examples that were not drawn, except those with the content of a drawn one."""
    revealed = [one for one in others if any(reveals(demonstration, one) for demonstration in shown)]
    hidden = {id(one) for one in revealed}
    asked = [one for one in others if id(one) not in hidden]
    if not asked:
        problem = "every example that is left has the content of a demonstration"
        raise UserError.of(f"task {task.name}: fewshot", problem, "ask for fewer", len(shown))
    warnings = []
    if revealed:
        warnings.append(
            f"task {task.name}: {len(revealed)} examples are not asked, since they have the content of a "
            f"demonstration ({list_some([one.id for one in revealed])})"
        )
    examples = tuple(asked[:limit])
    return Demonstrated(examples, (shown,) * len(examples), len(asked), tuple(warnings))


def _ask_each(
    task: Task,
    fewshot: Fewshot,
    examples: Sequence[Example],
    pool: Sequence[Example] | None,
    limit: int | None,
) -> Demonstrated:
    """Ask all examples, each with demonstrations of its own, drawn as lm-evaluation-harness draws them."""
    source = examples if pool is None else pool
    sampler = Sampler("default", source, fewshot.seed)
    drawn, chosen, asked = [], [], examples[:limit]
    for at, example in enumerate(asked):
        try:
            drawn.append(tuple(sampler.sample(fewshot.count, example if pool is None else None)))
        except TooFewError:
            drawn.append(())
        further = random.Random(f"{fewshot.seed} {at}").sample(source, len(source))
        spare = [one for one in further if one not in drawn[-1]]
        chosen.append(tuple(_not_revealing(example, drawn[-1], spare)))
    return _ask_all(task, examples, asked, drawn, chosen)


def _ask_all(
    task: Task,
    examples: Sequence[Example],
    asked: Sequence[Example],
    drawn: Sequence[tuple[Example, ...]],
    chosen: Sequence[tuple[Example, ...]],
) -> Demonstrated:
    """Ask `asked` with the `chosen` demonstrations, which replace `drawn` ones that reveal the answer."""
    count = max(map(len, drawn), default=0)
    without = [one.id for one, shown in zip(asked, chosen, strict=True) if len(shown) < count]
    if without:
        problem = (
            f"for {len(without)} of {len(asked)} examples there are fewer than {count} demonstrations "
            f"that do not have their own content ({list_some(without)})"
        )
        remedy = "ask for fewer, or give a file of other examples"
        raise UserError.of(f"task {task.name}: fewshot", problem, remedy, count)
    replaced = [one.id for one, *of in zip(asked, drawn, chosen, strict=True) if of[0] != of[1]]
    warnings = []
    if replaced:
        warnings.append(
            f"task {task.name}: {len(replaced)} of {len(asked)} examples are in the file of demonstrations; "
            f"they have another demonstration in place of their own content ({list_some(replaced)})"
        )
    return Demonstrated(tuple(asked), tuple(chosen), len(examples), tuple(warnings))


def _not_revealing(example: Example, shown: Sequence[Example], spare: Sequence[Example]) -> Iterator[Example]:
    """`shown`, with those that reveal `example` replaced from `spare`, or left out when `spare` runs out."""
    others = (one for one in spare if not reveals(one, example))
    for one in shown:
        yield from islice(others, 1) if reveals(one, example) else (one,)


def reveals(demonstration: Example, asked: Example) -> bool:
    """Whether a demonstration has the content of the example that is asked.

    That is the case if it has one of the example's prompts (apart from white space at the ends) and either
    its classes or its answer.
    """
    prompt = demonstration.prompts[0].strip()
    if all(prompt != text.strip() for text in asked.prompts):
        return False
    if demonstration.number is not None or asked.number is not None:
        return True
    classes = {text.strip() for text in demonstration.continuations}
    others = {text.strip() for text in asked.continuations}
    return classes == others or (
        asked.answer_index is not None
        and demonstration.answer_index is not None
        and demonstration.continuations[demonstration.answer_index].strip()
        == asked.continuations[asked.answer_index].strip()
    )
