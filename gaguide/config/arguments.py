"""The command lines of programs that run on many ranks."""

from __future__ import annotations

import argparse
from typing import NoReturn

from gaguide.errors import UserError


class ArgumentParser(argparse.ArgumentParser):
    """Raises `UserError` for a wrong argument, so that only one rank prints it."""

    def error(self, message: str) -> NoReturn:
        raise UserError.of("arguments", message, f"see {self.prog} --help")
