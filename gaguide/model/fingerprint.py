"""The identity of a model by content, so that a folder may be moved or spelt otherwise.

Of a folder: its configuration and its weight files (`gaguide.model.content`). Of a hub model: its commit.
"""

from __future__ import annotations

from pathlib import Path

from transformers import PretrainedConfig

from gaguide.config import ModelSection
from gaguide.files import hash_json
from gaguide.model.content import read_content, weight_files
from gaguide.model.shape import DROPOUT_FIELDS

_NOT_IDENTITY = {
    "_name_or_path", "_commit_hash", "transformers_version", "dtype", "torch_dtype", "use_cache",
    *DROPOUT_FIELDS,
}  # fmt: skip


def model_fingerprint(section: ModelSection, config: PretrainedConfig) -> tuple[str, str]:
    """SHA-256 of the model before training (without dropout), and of its weights alone.

    The first changes with defaults that a transformers release adds to configurations, the second does not.
    """
    settings = {key: value for key, value in config.to_dict().items() if key not in _NOT_IDENTITY}
    weights = _weights(section, config)
    return hash_json([settings, weights], default=str), hash_json(weights, default=str)


def _weights(section: ModelSection, config: PretrainedConfig) -> object:
    folder = Path(section.name)
    if section.init == "scratch":
        return "scratch"
    if not folder.is_dir():
        commit = getattr(config, "_commit_hash", None)
        return commit or [section.name, section.revision]
    return [[one.name, one.size, one.sha256] for one in map(read_content, weight_files(folder))]
