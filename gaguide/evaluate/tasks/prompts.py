"""The prompts of a task: system instruction, description, demonstrations and question, as messages. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gaguide.errors import UserError
from gaguide.evaluate.tasks.conversation import Conversation, Message, join
from gaguide.evaluate.tasks.example import Example
from gaguide.evaluate.tasks.options import TaskOptions
from gaguide.evaluate.tasks.task import Task

_SEPARATOR = "\n\n"
"""Text between system instruction and description of a task without demonstrations."""


def with_prompts(
    task: Task, examples: Sequence[Example], shown: Sequence[Sequence[Example]], options: TaskOptions
) -> tuple[Example, ...]:
    """The examples with everything that goes before their questions; `shown` holds each one's demonstrations.

    Raises `UserError` where a demonstration has no answer.
    """
    separator = task.fewshot.separator if task.fewshot is not None else _SEPARATOR
    system = join(options.system_instruction, task.description, separator)
    start: Conversation = (Message("system", system),) if system else ()
    written: dict[int, Conversation] = {}  # by identity: most examples have the same demonstrations
    found = []
    for example, demonstrations in zip(examples, shown, strict=True):
        before = start
        for one in demonstrations:
            if id(one) not in written:
                written[id(one)] = demonstrate(task, one, separator)
            before += written[id(one)]
        if before or options.apply_chat_template:
            asked = [(*before, Message("user", prompt)) for prompt in example.prompts]
            example = example.asked_as(asked, options.apply_chat_template)
        if options.apply_chat_template and task.delimiter:
            # No delimiter after a template's beginning of the answer.
            texts = tuple(text.removeprefix(task.delimiter) for text in example.continuations)
            example = replace(example, continuations=texts, delimiter="")
        found.append(example)
    return tuple(found)


def demonstrate(task: Task, example: Example, separator: str) -> Conversation:
    """A prompt and its right answer, both as the data spell them.

    A number follows the task's delimiter or, where the task gives none and the prompt does not end in white
    space, a space.
    """
    prompt, delimiter = example.prompts[0], task.delimiter
    if example.number is not None:
        if "delimiter" not in task.model_fields_set:
            delimiter = "" if not prompt or prompt[-1].isspace() else " "
        answer = example.number_text
    elif len(example.continuations) == 1:
        answer = example.continuations[0].removeprefix(delimiter)
    elif example.answer_index is not None:
        answer = example.continuations[example.answer_index].removeprefix(delimiter)
    else:
        problem = f"example {example.id} has no answer to demonstrate"
        raise UserError.of(f"task {task.name}: fewshot", problem, "give answer_index, or remove fewshot")
    return Message("user", prompt, delimiter), Message("assistant", answer, separator)
