"""Command-line options as dataclasses, shared between commands and checked as one value."""

from __future__ import annotations

import copy
import functools
import inspect
import os
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from gaguide.numbers import parse_whole


def integer(value: Any) -> int:
    """The value of an option, which may be written `1e6` as in a run's settings; else a usage error."""
    try:
        return value if isinstance(value, int) else parse_whole(value)
    except ValueError:
        raise typer.BadParameter(f"{value!r} must be a whole number, such as 1000000 or 1e6") from None


def _integer_parser(low: float | None, high: float | None) -> Callable[[Any], int]:
    """`integer`, also within bounds."""
    if low is None and high is None:
        return integer

    def bounded(value: Any) -> int:
        number = integer(value)
        if (low is not None and number < low) or (high is not None and number > high):
            limits = [f"at least {low}"] * (low is not None) + [f"at most {high}"] * (high is not None)
            raise typer.BadParameter(f"{value!r} must be {' and '.join(limits)}")
        return number

    bounded.__name__ = integer.__name__  # its name in the help
    return bounded


Workers = Annotated[
    int | None,
    typer.Option(
        help="Number of processes. The result does not depend on it.", show_default="cores of this machine"
    ),
]
"""`--workers` of commands that read shards or text; see `cores`."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def takes(options: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator for a command whose parameter `options` is an instance of a dataclass.

    typer sees one option per field instead: `Annotated[type, typer.Option(help=…)]` with the field's default.
    Options of type int accept `1e6` too.
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
    if get_origin(annotation) is Annotated:
        kind, option = get_args(annotation)
        if kind is int or kind == int | None:
            option = copy.copy(option)
            option.parser = _integer_parser(option.min, option.max)
            option.min = option.max = None
            annotation = Annotated[kind, option]
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )
