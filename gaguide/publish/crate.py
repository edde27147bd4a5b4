"""RO-Crate 1.1: where the files of a folder come from, as ro-crate-metadata.json (JSON-LD).

https://www.researchobject.org/ro-crate/specification/1.1/
"""

from __future__ import annotations

import mimetypes
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gaguide.errors import mask_all
from gaguide.files import hash_file, write_json
from gaguide.model.content import CRATE
from gaguide.publish.base import BaseModel
from gaguide.publish.citation import PAPER_URL, SOFTWARE_LICENSE, paper_entities

_CONTEXT = "https://w3id.org/ro/crate/1.1/context"
_PROFILE = "https://w3id.org/ro/crate/1.1"
UNKNOWN_LICENSE = "Not stated: whoever shares this folder decides."
_TYPES = {
    ".yaml": "application/yaml", ".jsonl": "application/jsonl", ".md": "text/markdown",
    ".parquet": "application/vnd.apache.parquet", ".safetensors": "application/octet-stream",
}  # fmt: skip
"""Media types that Python's table lacks or has only on some machines."""

Entity = dict[str, Any]
"""An entity of JSON-LD: `@id`, `@type` and properties."""


class Crate:
    """The description of a folder: its content, and the data and software that it was made with."""

    def __init__(self, folder: Path, name: str, description: str, license: str | None = None) -> None:
        is_address = license is not None and "://" in license
        self.folder = folder
        self._entities: dict[str, Entity] = {}
        self.root: Entity = {
            "@id": "./",
            "@type": "Dataset",
            "name": name,
            "description": description,
            "datePublished": datetime.now(UTC).date().isoformat(),
            "license": {"@id": license} if is_address else license or UNKNOWN_LICENSE,
            "hasPart": [],
        }
        self.add(self.root)
        if is_address:
            self.add({"@id": license, "@type": "CreativeWork", "name": f"Licence: {license}"})

    def add(self, entity: Entity) -> dict[str, str]:
        """Add an entity, once for each `@id`; returns the reference to it."""
        self._entities.setdefault(
            entity["@id"], {key: of for key, of in entity.items() if of not in (None, [])}
        )
        return {"@id": entity["@id"]}

    def add_file(self, path: Path) -> dict[str, str]:
        """Add a file of the folder with its size and SHA-256."""
        relative = path.relative_to(self.folder).as_posix()
        kind = _TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0]
        reference = self.add(
            {
                "@id": quote(relative),
                "@type": "File",
                "name": relative,
                "contentSize": str(path.stat().st_size),
                "sha256": hash_file(path),
                "encodingFormat": kind,
            }
        )
        self.root["hasPart"].append(reference)
        return reference

    def add_software(
        self, versions: Mapping[str, str], code: str | None, commit: str | None
    ) -> list[dict[str, str]]:
        """Add gaguide, as its code was, and the other packages; returns the references."""
        own = {
            "@id": f"#gaguide-{(code or versions.get('gaguide', ''))[:16]}",
            "@type": "SoftwareApplication",
            "name": "gaguide",
            "softwareVersion": versions.get("gaguide"),
            "license": {"@id": SOFTWARE_LICENSE},
            "sha256": code,
            "version": commit,
            "citation": {"@id": PAPER_URL},
        }
        self.add({"@id": SOFTWARE_LICENSE, "@type": "CreativeWork", "name": "Apache License 2.0"})
        for entity in paper_entities():
            self.add(entity)
        found = [self.add(own)]
        for name, version in versions.items():
            if name not in ("gaguide", "commit"):
                entity = {"@id": f"#{name}-{version}", "@type": "SoftwareApplication", "name": name}
                found.append(self.add({**entity, "softwareVersion": version}))
        return found

    def add_model(self, base: BaseModel) -> dict[str, str]:
        """Add the model that a training started from."""
        hub = f"https://huggingface.co/{base.hub_id}" if base.hub_id else None
        return self.add(
            {
                "@id": f"#model-{base.fingerprint[:16]}",
                "@type": "Dataset",
                "name": base.hub_id or Path(base.name).name,
                "description": "A pretrained model." if base.is_pretrained else "A model of random weights.",
                "url": hub,
                "license": base.license_link or base.license_name or base.license,
                "identifier": f"fingerprint:{base.fingerprint}",
            }
        )

    def add_data(self, fingerprint: str, sources: Sequence[str], tokenizer: str | None) -> dict[str, str]:
        """Add training text, tokenised. `fingerprint` and `tokenizer` are hashes of contents."""
        return self.add(
            {
                "@id": f"#data-{fingerprint[:16]}",
                "@type": "Dataset",
                "name": "training text: " + (", ".join(sources) or "sources not recorded"),
                "identifier": [f"fingerprint:{fingerprint}"]
                + ([f"tokenizer:{tokenizer}"] if tokenizer else []),
                "isBasedOn": [source for source in sources if "://" in source],
            }
        )

    def add_training(
        self, name: str, made: str, summary: Mapping[str, Any], of: Sequence[dict[str, str]]
    ) -> None:
        """Say that `made` comes from a run with this summary.json, with its base model, text and code, and
        from the entities `of`."""
        prints, versions = summary.get("fingerprints") or {}, summary.get("versions") or {}
        made_of = []
        if summary.get("base_model"):
            made_of.append(self.add_model(BaseModel.from_record(summary["base_model"])))
        if "data" in prints:
            made_of.append(
                self.add_data(prints["data"], summary.get("sources") or (), prints.get("tokenizer"))
            )
        software = self.add_software(versions, prints.get("code"), versions.get("commit"))
        self.add_action(name, made, [*made_of, *of], software)

    def add_action(
        self, name: str, made: str, of: Sequence[dict[str, str]], by: Sequence[dict[str, str]]
    ) -> None:
        """Say that the entity `made` was made from the entities `of` by the software `by`."""
        action = {"@id": f"#made-{quote(made, safe='')}", "@type": "CreateAction", "name": name}
        references = {"object": _once(of), "instrument": _once(by), "result": {"@id": made}}
        self.root.setdefault("mentions", []).append(self.add({**action, **references}))

    def write(self) -> Path:
        """Write the description into the folder; no text in it shows credentials."""
        descriptor = {
            "@id": CRATE,
            "@type": "CreativeWork",
            "conformsTo": {"@id": _PROFILE},
            "about": {"@id": "./"},
        }
        context = [_CONTEXT, {"sha256": "https://schema.org/sha256"}]
        entities = {**self._entities, "./": self.root}
        path = self.folder / CRATE
        write_json(path, {"@context": context, "@graph": [descriptor, *mask_all(list(entities.values()))]})
        return path


def _once(references: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    return [{"@id": name} for name in dict.fromkeys(each["@id"] for each in references)]
