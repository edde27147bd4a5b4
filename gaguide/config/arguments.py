"""Arguments of programs: those that run on many ranks, and arguments made settings."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any, NoReturn

from gaguide.errors import UserError


class ArgumentParser(argparse.ArgumentParser):
    """Raises `UserError` for a wrong argument, so that only one rank prints it."""

    def error(self, message: str) -> NoReturn:
        raise UserError.of("arguments", message, f"see {self.prog} --help")


def shared(options: Any, kind: type[Any]) -> dict[str, Any]:
    """The options that have the name of a field of the dataclass `kind`, as its arguments."""
    return {each.name: getattr(options, each.name) for each in fields(kind) if hasattr(options, each.name)}
