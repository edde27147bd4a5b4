"""Few-shot prompts: the same demonstrations before every prompt of a task, drawn once from a seed.

The prompts then share a long prefix, which is computed once for many of them. An example never has its own
content among its demonstrations: one that would gets another demonstration in that place. Pure.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice

from gaguide.errors import Fault, UserError
from gaguide.evaluate.tasks.examples import Example, list_some
from gaguide.evaluate.tasks.task import Fewshot, Task


@dataclass(frozen=True)
class Demonstrated:
    """Examples with demonstrations before their prompts."""

    examples: tuple[Example, ...]
    """What is asked."""
    available: int
    """How many there are to ask without a limit."""
    warnings: tuple[str, ...]
    """Which examples were left out, or have other demonstrations than the rest."""


def with_demonstrations(
    task: Task,
    fewshot: Fewshot,
    examples: Sequence[Example],
    pool: Sequence[Example] | None,
    limit: int | None,
) -> Demonstrated:
    """The first `limit` of `examples` with demonstrations before their prompts.

    pool: what demonstrations are drawn from; None draws from `examples`, and neither the drawn ones nor
    others with their content are asked. Raises `UserError` where there are too few, or where one has no
    answer.
    """
    source = examples if pool is None else pool
    needed = fewshot.count + (pool is None)
    if len(source) < needed:
        problem = f"asks for {fewshot.count} demonstrations, but there are {len(source)} examples"
        raise UserError(Fault(f"task {task.name}: fewshot", problem, "ask for fewer", fewshot.count))
    random_draw = random.Random(fewshot.seed)
    drawn = random_draw.sample(range(len(source)), fewshot.count)
    rest = [at for at in range(len(source)) if at not in set(drawn)]
    shown = [source[at] for at in drawn]
    if pool is None:
        return _ask_others(task, fewshot, [source[at] for at in rest], shown, limit)
    spare = [source[at] for at in random_draw.sample(rest, len(rest))]
    asked = _ask_all(task, fewshot, examples[:limit], shown, spare)
    return replace(asked, available=len(examples))


def _ask_others(
    task: Task, fewshot: Fewshot, others: Sequence[Example], shown: Sequence[Example], limit: int | None
) -> Demonstrated:
    """Of the examples that were not drawn, those without the content of a drawn one."""
    revealed = [one for one in others if any(reveals(demonstration, one) for demonstration in shown)]
    hidden = {id(one) for one in revealed}
    asked = [one for one in others if id(one) not in hidden]
    if not asked:
        problem = "every example that is left has the content of a demonstration"
        raise UserError(Fault(f"task {task.name}: fewshot", problem, "ask for fewer", len(shown)))
    warnings = []
    if revealed:
        warnings.append(
            f"task {task.name}: {len(revealed)} examples are not asked, since they have the content of a "
            f"demonstration ({list_some([one.id for one in revealed])})"
        )
    prefix = [demonstrate(task, one) + fewshot.separator for one in shown]
    examples = tuple(_with_prefix(one, prefix) for one in asked[:limit])
    return Demonstrated(examples, len(asked), tuple(warnings))


def _ask_all(
    task: Task, fewshot: Fewshot, asked: Sequence[Example], shown: Sequence[Example], spare: Sequence[Example]
) -> Demonstrated:
    """All examples; a demonstration that would reveal one is replaced, for that example, by a spare one."""
    result, replaced, without = [], [], []
    for example in asked:
        chosen = list(_not_revealing(example, shown, spare))
        if len(chosen) < len(shown):
            without.append(example.id)
        elif chosen != list(shown):
            replaced.append(example.id)
        result.append(_with_prefix(example, [demonstrate(task, one) + fewshot.separator for one in chosen]))
    if without:
        problem = (
            f"for {len(without)} of {len(asked)} examples there are fewer than {len(shown)} demonstrations "
            f"that do not have their own content ({list_some(without)})"
        )
        remedy = "ask for fewer, or give a file of other examples"
        raise UserError(Fault(f"task {task.name}: fewshot", problem, remedy, len(shown)))
    warnings = []
    if replaced:
        warnings.append(
            f"task {task.name}: {len(replaced)} of {len(asked)} examples are in the file of demonstrations; "
            f"they have another demonstration in place of their own content ({list_some(replaced)})"
        )
    return Demonstrated(tuple(result), len(asked), tuple(warnings))


def _not_revealing(example: Example, shown: Sequence[Example], spare: Sequence[Example]) -> Iterator[Example]:
    """The demonstrations before `example`, fewer than `shown` where none is left in place of one."""
    others = (one for one in spare if not reveals(one, example))
    for one in shown:
        yield from islice(others, 1) if reveals(one, example) else (one,)


def reveals(demonstration: Example, asked: Example) -> bool:
    """Whether a demonstration has the content of the example that is asked.

    That is one of its prompts, white space at the ends aside, with its answer or with its classes.
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


def _with_prefix(example: Example, demonstrations: Sequence[str]) -> Example:
    prefix = "".join(demonstrations)
    prompts = tuple(prefix + prompt for prompt in example.prompts)
    return replace(example, prompts=prompts, demonstration_ends=tuple(accumulate(map(len, demonstrations))))


def demonstrate(task: Task, example: Example) -> str:
    """A prompt with its right answer, both as the data spell them.

    A number follows the task's delimiter or, where the task gives none and the prompt does not end in white
    space, a space.
    """
    prompt = example.prompts[0]
    if example.number is not None:
        space = "" if not prompt or prompt[-1].isspace() else " "
        delimiter = task.delimiter if "delimiter" in task.model_fields_set else space
        return prompt + delimiter + example.number_text
    if len(example.continuations) == 1:
        return prompt + example.continuations[0]
    if example.answer_index is None:
        problem = f"example {example.id} has no answer to demonstrate"
        raise UserError(Fault(f"task {task.name}: fewshot", problem, "give answer_index, or remove fewshot"))
    return prompt + example.continuations[example.answer_index]
