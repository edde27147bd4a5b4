"""Conversations as text, and the stretches of it that the assistant has written.

A template with `{% generation %}` marks them itself. With any other, the text of the first k messages must
begin the text of all of them; the answer is the text of the assistant's message after the generation prompt,
up to its end-of-turn token.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gaguide.data.build.row_fields import ASSISTANT
from gaguide.data.build.rows import Conversation, Reason
from gaguide.errors import Fault, UserError
from gaguide.files import expand_home

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class ChatText:
    """A rendered conversation."""

    text: str
    """The whole text, special tokens spelled out."""
    answers: tuple[tuple[int, int], ...]
    """First character, and the one after the last, of each stretch that the assistant has written."""
    ends_with_answer: bool
    """Whether the last message is the assistant's."""


@dataclass(frozen=True)
class ChatRenderer:
    """Renders conversations by one template. Can be pickled."""

    tokenizer: PreTrainedTokenizerBase
    """Gives the template its special tokens."""
    template: str
    """The template, in Jinja."""

    def render(self, conversation: Conversation) -> ChatText | Reason:
        """The conversation's text; a reason where the template refuses it.

        Raises a `UserError` where the template does not show what the assistant has written.
        """
        messages = [{"role": role, "content": content} for role, content in conversation.messages]
        try:
            if _MARKED.search(self.template):
                text, answers = self._by_marks(messages)
            else:
                text, answers = self._by_prefixes(messages)
        except UserError:
            raise
        except Exception as error:  # whatever a template raises: its own refusals are jinja2's
            if not type(error).__module__.startswith("jinja2"):
                raise
            return Reason.TEMPLATE
        answers = tuple((start, end) for start, end in answers if end > start)
        return ChatText(text, answers, messages[-1]["role"] == ASSISTANT) if answers else Reason.NO_ANSWER

    def _by_marks(self, messages: list[dict[str, str]]) -> tuple[str, tuple[tuple[int, int], ...]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        tokens: dict[str, Any] = dict(self.tokenizer.special_tokens_map)
        rendered: Any = render_jinja_template(
            conversations=[messages], chat_template=self.template, return_assistant_tokens_mask=True, **tokens
        )
        texts, places = rendered
        return texts[0], tuple((int(start), int(end)) for start, end in places[0])

    def _by_prefixes(self, messages: list[dict[str, str]]) -> tuple[str, tuple[tuple[int, int], ...]]:
        whole = self._text(messages, False)
        answers = []
        for at, message in enumerate(messages):
            if message["role"] != ASSISTANT:
                continue
            upto = self._text(messages[: at + 1], False)
            prompt = self._text(messages[:at], True) if at else self._beginning(message["content"], upto)
            if not (upto.startswith(prompt) and whole.startswith(upto)):
                raise UserError(_not_by_prefixes())
            answers.append((len(prompt), len(upto.rstrip())))
        return whole, tuple(answers)

    def _beginning(self, content: str, rendered: str) -> str:
        """Text before the content of a first message of the assistant, such as a default system prompt: the
        common beginning with the rendering of another content."""
        other = "b" if content.lstrip().startswith("a") else "a"
        pairs = zip(rendered, self._text([{"role": ASSISTANT, "content": other}], False))
        return "".join(one for one, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

    def _text(self, messages: list[dict[str, str]], prompt: bool) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                messages, chat_template=self.template, tokenize=False, add_generation_prompt=prompt
            )
        )


def read_template(path: str | Path, field: str) -> str:
    """The text of a template file; `UserError` under `field` if it cannot be read."""
    try:
        return expand_home(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        problem, remedy = f"cannot be read ({error})", "give a file with a Jinja template"
        raise UserError.of(field, problem, remedy, str(path)) from None


def find_template(tokenizer: PreTrainedTokenizerBase, given: str | None) -> str:
    """The template that was given, or the tokenizer's own; `UserError` where there is none."""
    template = given or tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        problem = "the tokenizer has no chat template"
        remedy = "give one with --template FILE (Jinja), or the tokenizer of an instruction-tuned model"
        raise UserError.of("--chat", problem, remedy)
    return str(template)


def _not_by_prefixes() -> Fault:
    problem = (
        "does not show what the assistant writes: the text of the first messages is not the start of the "
        "whole text, as in templates that drop earlier reasoning"
    )
    remedy = (
        "give a copy (--template) with {% generation %} and {% endgeneration %} around the assistant's text"
    )
    return Fault("--template", problem, remedy)
