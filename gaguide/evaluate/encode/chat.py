"""Prompts as a model's chat template renders them, equal to lm-evaluation-harness 0.4.13."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gaguide.errors import UserError, first_line
from gaguide.evaluate.model_folder import ModelFolder
from gaguide.evaluate.tasks.conversation import Conversation, as_chat
from gaguide.evaluate.tasks.example import Example
from gaguide.evaluate.tasks.read import TaskData


def render_chats(data: Sequence[TaskData], folder: ModelFolder, multiturn: bool) -> list[TaskData]:
    """The tasks with the prompts of this model: examples with conversations get them rendered.

    multiturn: whether each demonstration is a turn of its own. Raises `UserError` where the model has no
    template, or its template refuses a prompt.
    """
    if not any(example.conversations for task in data for example in task.examples):
        return list(data)
    if getattr(folder.tokenizer, "chat_template", None) is None:
        remedy = "leave the option out, or save a chat template with the model's tokenizer"
        problem = "the model's tokenizer has no chat template"
        raise UserError.of("--apply-chat-template", problem, remedy, folder.name)
    renderer = _Renderer(folder, multiturn)
    found = []
    for task in data:
        examples = tuple(map(renderer.render, task.examples))
        dropped = renderer.take_dropped()
        warnings = (
            f"task {task.task.name}: the chat template of {folder.name} refuses a system message, so that "
            f"description and system instruction are left out of {dropped} of {len(examples)} examples",
        )
        found.append(replace(task, examples=examples, warnings=task.warnings + (warnings if dropped else ())))
    return found


class _Renderer:
    def __init__(self, folder: ModelFolder, multiturn: bool) -> None:
        self._folder, self._multiturn, self._dropped = folder, multiturn, 0

    def take_dropped(self) -> int:
        """Examples since the last call that lost their system message."""
        count, self._dropped = self._dropped, 0
        return count

    def render(self, example: Example) -> Example:
        if not example.conversations:
            return example
        before = self._dropped
        prompts = tuple(self._prompt(one, example) for one in example.conversations)
        self._dropped = min(self._dropped, before + 1)
        return replace(example, prompts=prompts, conversations=(), preamble=0, demonstration_ends=())

    def _prompt(self, conversation: Conversation, example: Example) -> str:
        from jinja2 import TemplateError

        chat = as_chat(conversation, self._multiturn)
        begun = chat[-1]["role"] == "assistant"
        try:
            return self._apply(chat, begun)
        except TemplateError:
            self._dropped += 1
        try:
            return self._apply([one for one in chat if one["role"] != "system"], begun)
        except (TemplateError, ValueError) as error:
            problem = f"the model's chat template refuses example {example.id}: {first_line(error)}"
            remedy = "leave the option out, or change --fewshot-as-multiturn"
            raise UserError.of("--apply-chat-template", problem, remedy, self._folder.name) from None

    def _apply(self, chat: list[dict[str, str]], begun: bool) -> str:
        tokenizer: Any = self._folder.tokenizer
        return str(
            tokenizer.apply_chat_template(
                chat, tokenize=False, add_generation_prompt=not begun, continue_final_message=begun
            )
        )
