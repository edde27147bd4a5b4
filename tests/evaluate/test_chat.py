"""Chat templates for gaguide's own tasks; those of the harness are compared with it elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gaguide.errors import UserError
from gaguide.evaluate import EvaluateSettings
from gaguide.evaluate.command import _options, parser
from gaguide.evaluate.encode.chat import render_chats
from gaguide.evaluate.model_folder import ModelFolder
from gaguide.evaluate.tasks.options import TaskOptions
from gaguide.evaluate.tasks.read import TaskData, read_tasks
from tests.support.three_tokenizers import CHAT_TEMPLATE, llama_tokenizer

_ROWS = [{"prompt": f"Is {at} odd?", "classes": ["yes", "no"], "answer_index": 1 - at % 2} for at in range(4)]
_REFUSES = "{% for m in messages if m.role == 'system' %}{{ raise_exception('no system') }}{% endfor %}"


def _tokenizer(template: str | None) -> Any:
    tokenizer = llama_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def _rendered(folder: Path, template: str | None = CHAT_TEMPLATE, multiturn: bool = True) -> TaskData:
    (folder / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _ROWS))
    (folder / "quiz.yaml").write_text(
        json.dumps(
            {
                "name": "quiz", "file": "quiz.jsonl", "delimiter": " ", "description": "Answer.",
                "fewshot": {"count": 1, "draw": "first"},
            }
        )
    )  # fmt: skip
    options = TaskOptions(apply_chat_template=True, system_instruction="Be brief.")
    data = read_tasks([str(folder / "quiz.yaml")], None, None, options=options)
    model = ModelFolder("model", None, _tokenizer(template))
    (found,) = render_chats(data, model, multiturn)
    return found


def test_turns_and_one_message(tmp_path: Path) -> None:
    system = "<|begin|><|system|>\nBe brief.\n\nAnswer.<|end|>\n"
    example = _rendered(tmp_path).examples[0]
    assert example.prompts == (
        f"{system}<|user|>\nIs 0 odd?<|end|>\n<|assistant|>\nno<|end|>\n"
        "<|user|>\nIs 1 odd?<|end|>\n<|assistant|>\n",
    )
    assert example.continuations == ("yes", "no") and example.counted_texts == ("yes", "no")
    example = _rendered(tmp_path, multiturn=False).examples[0]
    assert example.prompts == (f"{system}<|user|>\nIs 0 odd? no\n\nIs 1 odd?<|end|>\n<|assistant|>\n",)


def test_a_template_without_system_messages_is_reported(tmp_path: Path) -> None:
    task = _rendered(tmp_path, _REFUSES + CHAT_TEMPLATE)
    assert "Be brief" not in task.examples[0].prompts[0] and "<|user|>" in task.examples[0].prompts[0]
    assert any("left out of 3 of 3 examples" in text for text in task.warnings)


def test_a_model_without_a_template_and_options_that_exclude_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no chat template"):
        _rendered(tmp_path, None)
    chat = TaskOptions(apply_chat_template=True)
    with pytest.raises(UserError, match="demonstrations are parts of a chat"):
        EvaluateSettings(options=chat, on_overflow="drop-demonstrations").check()
    asked = ["--model", "m", "--tasks", "t", "--output", "o"]
    with pytest.raises(UserError, match="needs --apply-chat-template"):
        _options(parser().parse_args([*asked, "--fewshot_as_multiturn"]))
    options = _options(parser().parse_args([*asked, "--apply_chat_template", "--no-fewshot-as-multiturn"]))
    assert options.apply_chat_template and not options.fewshot_as_multiturn
