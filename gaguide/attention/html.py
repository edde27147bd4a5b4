"""What pages with scripts or data need so that no text in them can become code.

Data stands in a script element of a type that is never run, with every character escaped that could end
it. The page's policy names its one script by hash, so that nothing else would run even if it got in, and
allows no address at all: a page works offline, for ever.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

_ENDS_SCRIPT = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}


def script_data(value: Any) -> str:
    """JSON for the inside of a script element; `</script>` and `<!--` in its texts stay texts."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # Lone surrogates (half a character that a vocabulary split) cannot be written as UTF-8.
    return text.translate(_ENDS_SCRIPT).encode("utf-8", "backslashreplace").decode("utf-8")


def content_policy(script: str = "") -> str:
    """The Content-Security-Policy of a page whose only script is `script` (none: no script at all)."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode()
        policy += f"; script-src 'sha256-{digest}'"
    return policy
