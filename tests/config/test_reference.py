"""Every setting is documented: in the help of `gaguide train` and on a page that is current."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gaguide.config import RunConfig
from gaguide.config.reference import settings, settings_help, settings_page
from tests.support.ranks import REPOSITORY


def fields(schema: dict[str, Any], whole: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of all values in a JSON schema; sections themselves only where they may be absent."""
    for name, field in schema["properties"].items():
        branches = [field, *field.get("anyOf", []), field.get("items", {})]
        below = [each["$ref"].rpartition("/")[2] for each in branches if "$ref" in each]
        if not below:
            yield f"{prefix}{name}"
        for each in below:
            mark = "[]" if field.get("type") == "array" else ""
            yield from fields(whole["$defs"][each], whole, f"{prefix}{name}{mark}.")


def test_every_setting_has_its_sentence_type_and_default() -> None:
    schema = RunConfig.model_json_schema()
    known = {each.name: each for each in settings()}
    expected = set(fields(schema, schema))
    assert len(expected) > 60
    assert expected <= known.keys()
    for each in known.values():
        assert each.meaning.endswith("."), each.name
        assert "another value" not in each.accepts and each.accepts, each.name
    assert known["train.steps"].accepts == "an integer greater than 0 or null"
    assert known["train.steps"].default == "null"
    assert known["train.global_batch"].default == "required"
    assert known["train.betas"].default == "[0.9, 0.999]"


def test_the_page_is_current() -> None:
    """After a change of a setting: python -m gaguide.config.reference docs/settings.md"""
    page = (REPOSITORY / "docs" / "settings.md").read_text("utf-8")
    assert page == settings_page()
    assert "settings.md" in (REPOSITORY / "mkdocs.yml").read_text("utf-8")


def test_the_help_names_every_setting() -> None:
    text = settings_help()
    for each in settings():
        assert f"{each.name}  (" in text
