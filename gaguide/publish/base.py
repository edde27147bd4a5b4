"""Metadata that a model card carries over from the base model's own card: licence and languages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, try_to_load_from_cache

CARD = "README.md"
"""Name of the model card in a folder."""
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class BaseModel:
    """The model that a run started from."""

    name: str
    """As the run names it: a hub id, a folder, or a size of random weights."""
    is_pretrained: bool
    """Whether its weights were trained before; otherwise they were random."""
    fingerprint: str
    """Identifies it by content."""
    license: str | None = None
    """Identifier of its licence; None where its card names none, or it has no card here."""
    license_name: str | None = None
    """Name of a licence that has no identifier (`license: other`)."""
    license_link: str | None = None
    """Where that licence can be read."""
    language: tuple[str, ...] = ()
    """Language codes."""
    hub_id: str | None = None
    """Its id on the hub; None for a folder whose card does not say where it came from."""

    def as_record(self) -> dict[str, Any]:
        """As plain JSON, for summary.json."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> BaseModel:
        """The reverse of `as_record`."""
        return cls(**{**record, "language": tuple(record.get("language") or ())})


def is_hub_id(name: str) -> bool:
    """Whether a name has the form of a repository's: NAME, USER/NAME or ORGANISATION/NAME."""
    return _HUB_ID.fullmatch(name) is not None


def read_base_model(name: str, is_pretrained: bool, fingerprint: str) -> BaseModel:
    """The base model with the metadata of its card in its folder or the hub's cache; no network is used."""
    folder = Path(name).expanduser()
    on_hub = is_pretrained and not folder.is_dir() and is_hub_id(name)
    found = try_to_load_from_cache(name, CARD) if on_hub else folder / CARD
    said = _metadata(Path(found)) if is_pretrained and isinstance(found, str | Path) else {}
    language = said.get("language") or ()
    parent = said.get("base_model")
    return BaseModel(
        name,
        is_pretrained,
        fingerprint,
        _text(said.get("license")),
        _text(said.get("license_name")),
        _text(said.get("license_link")),
        (language,) if isinstance(language, str) else tuple(map(str, language)),
        name if on_hub else _text(parent[0] if isinstance(parent, list) and parent else parent),
    )


def _metadata(card: Path) -> dict[str, Any]:
    """The metadata of a card; empty where there is no card or its metadata cannot be read."""
    try:
        return ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
    except Exception:  # the library's errors on a malformed card have no common base
        return {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
