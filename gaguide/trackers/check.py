"""Faults of the sections `mlflow` and `trackio` that are found before a run begins."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any

from gaguide.errors import Fault, is_masked, suggestion
from gaguide.trackers.sections import SECTIONS

_SCHEMES = (
    "databricks", "databricks-uc", "file", "http", "https", "mssql", "mysql", "postgresql", "sqlite", "uc",
)  # fmt: skip


def tracker_faults(settings: Mapping[str, Any]) -> list[Fault]:
    """Faults that would keep a resolved DeepSpeed JSON's enabled trackers from sending. Sends nothing."""
    faults: list[Fault] = []
    for name in SECTIONS:
        section = settings.get(name) or {}
        if not section.get("enabled"):
            continue
        if find_spec(name) is None:
            remedy = f"pip install 'gaguide[{name}]', or remove the section"
            faults.append(_fault(name, f"the package {name} is not installed", remedy))
        else:
            faults += _mlflow_faults(section) if name == "mlflow" else _trackio_faults(section)
    return faults


def _fault(field: str, problem: str, remedy: str, value: object = None) -> Fault:
    return Fault(f"{field} (DeepSpeed JSON)", problem, remedy, value)


def _masked(field: str, address: str, variable: str) -> list[Fault]:
    if not is_masked(address):
        return []
    remedy = f"give it with them, or set {variable}"
    return [_fault(field, "its credentials are masked, as in the deepspeed.json of a run", remedy, address)]


def _mlflow_faults(section: Mapping[str, Any]) -> list[Fault]:
    address = section.get("tracking_uri") or os.environ.get("MLFLOW_TRACKING_URI") or ""
    field = "mlflow.tracking_uri"
    if "://" in address:
        known = {*_SCHEMES, *(each.name for each in entry_points(group="mlflow.tracking_store"))}
        scheme = address.partition("://")[0].partition("+")[0]
        if scheme not in known:
            remedy = suggestion(scheme, known)
            return [_fault(field, f"MLflow knows no scheme {scheme!r}", remedy, address)]
    return _masked(field, address, "MLFLOW_TRACKING_URI")


def _trackio_faults(section: Mapping[str, Any]) -> list[Fault]:
    space = section.get("space_id") or os.environ.get("TRACKIO_SPACE_ID")
    server = section.get("server_url") or os.environ.get("TRACKIO_SERVER_URL") or ""
    if space:
        from huggingface_hub import get_token

        if get_token() is None:
            problem = "no token of the hub was found"
            return [_fault("trackio.space_id", problem, "run `hf auth login`, or set HF_TOKEN", space)]
        return []
    if server and not server.startswith(("http://", "https://")):
        return [_fault("trackio.server_url", "must begin with http:// or https://", "correct it", server)]
    if server and "write_token=" not in server and not os.environ.get("TRACKIO_WRITE_TOKEN"):
        problem = "a trackio server accepts numbers only with its write token"
        return [_fault("trackio.server_url", problem, "set TRACKIO_WRITE_TOKEN", server)]
    return _masked("trackio.server_url", server, "TRACKIO_SERVER_URL")
