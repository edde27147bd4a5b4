"""Checks of an RO-Crate: the rules of its specification, 1.1, and what the rocrate library reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote

NAME = "ro-crate-metadata.json"


def check_crate(folder: Path) -> dict[str, dict[str, Any]]:
    """The entities of the crate in `folder` by id, after all checks."""
    content = json.loads((folder / NAME).read_text("utf-8"))
    context, graph = content["@context"], content["@graph"]
    assert context[0] == "https://w3id.org/ro/crate/1.1/context"
    entities = {each["@id"]: each for each in graph}
    assert len(entities) == len(graph), "an id is given twice"
    descriptor, root = entities[NAME], entities["./"]
    assert descriptor["@type"] == "CreativeWork" and descriptor["about"] == {"@id": "./"}
    assert descriptor["conformsTo"] == {"@id": "https://w3id.org/ro/crate/1.1"}
    assert root["@type"] == "Dataset"
    assert all(root[name] for name in ("name", "description", "datePublished", "license"))
    for entity in graph:
        assert "@type" in entity, entity
        for value in entity.values():
            _check_flat(value)
    for reference in _references(graph):
        assert reference in entities or reference.startswith("https://w3id.org/ro/crate/"), reference
    files = [each for each in graph if each["@type"] == "File"]
    assert files and {each["@id"] for each in files} <= {each["@id"] for each in root["hasPart"]}
    for each in files:
        data = (folder / unquote(each["@id"])).read_bytes()
        assert each["sha256"] == hashlib.sha256(data).hexdigest() and each["contentSize"] == str(len(data))
    if find_spec("rocrate"):
        from rocrate.rocrate import ROCrate

        read = ROCrate(folder)
        assert {each.id for each in read.data_entities if "File" in each.type} == {
            each["@id"] for each in files
        }
        assert read.name == root["name"] and len(list(read.get_entities())) == len(graph)
    return entities


def _check_flat(value: Any) -> None:
    """Nested entities are references only."""
    for each in value if isinstance(value, list) else [value]:
        assert not isinstance(each, dict) or each.keys() == {"@id"}, each


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for each in value:
            yield from _references(each)
    elif isinstance(value, dict):
        if value.keys() == {"@id"}:
            yield value["@id"]
        else:
            yield from _references(list(value.values()))
