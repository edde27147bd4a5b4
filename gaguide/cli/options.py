"""Command-line options as dataclasses, shared between commands and checked as one value."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from typing import Any, get_type_hints


def takes(options: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator for a command whose parameter `options` is an instance of a dataclass.

    typer sees one option per field instead: `Annotated[type, typer.Option(help=…)]` with the field's default.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(options, include_extras=True)
        parameters = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in inspect.signature(command, eval_str=True).parameters.values()
            if parameter.name != "options"
        ]
        names = [field.name for field in fields(options)]
        parameters += [_parameter(field, hints[field.name]) for field in fields(options)]

        @functools.wraps(command)
        def call(**given: Any) -> None:
            value = options(**{name: given.pop(name) for name in names})
            command(options=value, **given)

        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return call

    return decorate


def _parameter(field: Field[Any], annotation: Any) -> inspect.Parameter:
    default = inspect.Parameter.empty if field.default is MISSING else field.default
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )
