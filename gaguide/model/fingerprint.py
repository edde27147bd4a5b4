"""The identity of a model by content, so that a folder may be moved or spelt otherwise.

Of a folder: its configuration and its weight files. A file up to 64 MiB is hashed whole; of a larger one its
size, its first and last MiB and 64 KiB at 64 places in between. Of a hub model: its commit.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from transformers import PretrainedConfig

from gaguide.config import ModelSection
from gaguide.files import hash_file, hash_parts
from gaguide.model.shape import DROPOUT_FIELDS

_WHOLE = 64 << 20
_END, _SAMPLE, _SAMPLES = 1 << 20, 64 << 10, 64
_NOT_IDENTITY = {
    "_name_or_path", "_commit_hash", "transformers_version", "dtype", "torch_dtype", "use_cache",
    *DROPOUT_FIELDS,
}  # fmt: skip


def model_fingerprint(section: ModelSection, config: PretrainedConfig) -> str:
    """SHA-256 of what the model is before training; dropout is not part of it."""
    settings = {key: value for key, value in config.to_dict().items() if key not in _NOT_IDENTITY}
    return hashlib.sha256(
        json.dumps([settings, _weights(section, config)], sort_keys=True, default=str).encode()
    ).hexdigest()


def _weights(section: ModelSection, config: PretrainedConfig) -> object:
    folder = Path(section.name)
    if section.init == "scratch":
        return "scratch"
    if not folder.is_dir():
        commit = getattr(config, "_commit_hash", None)
        return commit or [section.name, section.revision]
    files = [path for pattern in ("*.safetensors", "pytorch_model*.bin") for path in folder.glob(pattern)]
    return [[path.name, path.stat().st_size, _sampled_hash(path)] for path in sorted(files)]


def _sampled_hash(path: Path) -> str:
    size = path.stat().st_size
    if size <= _WHOLE:
        return hash_file(path)
    between = [(size * at // (_SAMPLES + 1), _SAMPLE) for at in range(1, _SAMPLES + 1)]
    with path.open("rb") as file:
        return hash_parts(file, [(0, _END), *between, (size - _END, _END)])
