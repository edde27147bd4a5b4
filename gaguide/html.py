"""Self-contained HTML pages: Jinja templates with autoescape, data for scripts, a content policy.

A page works offline: its Content-Security-Policy allows no address at all, and names its only script, if it
has one, by hash. Data are in a script element of a type that is never run.
"""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

_ENDS_SCRIPT = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}


def render_page(package: str, template: str, **values: Any) -> str:
    """The page made from a template in `package`'s folder and `values`.

    Every text is escaped, apart from `Markup`. Raises `jinja2.UndefinedError` for a value that is missing.
    """
    return _environment(package).get_template(template).render(values)


def read_asset(package: str, name: str) -> Markup:
    """A stylesheet or script in `package`'s folder, to be inlined as it is."""
    return Markup((files(package) / name).read_text("utf-8"))


def script_data(value: Any) -> Markup:
    """JSON for the inside of a script element; `</script>` and `<!--` in its texts stay texts."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # Lone surrogates (half a character that a vocabulary split) cannot be written as UTF-8.
    return Markup(text.translate(_ENDS_SCRIPT).encode("utf-8", "backslashreplace").decode("utf-8"))


def content_policy(script: str = "") -> str:
    """The Content-Security-Policy of a page whose only script is `script`; an empty text allows no script."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode()
        policy += f"; script-src 'sha256-{digest}'"
    return policy


@cache
def _environment(package: str) -> Environment:
    return Environment(
        loader=PackageLoader(package, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
