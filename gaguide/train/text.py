"""The text that a run's settings name: shards, a mixture of them, or a source."""

from __future__ import annotations

import os
from pathlib import Path

from gaguide.config import RunConfig, SourceSection
from gaguide.config.data import EMBEDDED_SHARDS
from gaguide.data import BuildRequest
from gaguide.data.build.chat import read_template
from gaguide.data.build.demo_corpus import build_embedded_corpus, embedded_folder
from gaguide.data.corpus import Corpus, folder_corpus, mixture_corpus, source_corpus
from gaguide.errors import UserError
from gaguide.files import local_folder


def find_corpus(run: RunConfig) -> Corpus:
    """The data of a run. Raises `UserError` with the faults of its `data`."""
    data, seed = run.data, run.seed
    cache_bytes = int(data.cache_gb * 1e9)
    if data.mixture:
        parts = [(entry.shards, entry.weight) for entry in data.mixture]
        return mixture_corpus(parts, data.block_length, seed, cache_bytes)
    if data.source is not None:
        return source_corpus(_build_request(run, data.source), data.block_length, seed, run.validation.blocks)
    folder = embedded_corpus() if data.shards == EMBEDDED_SHARDS else str(data.shards)
    return folder_corpus(folder, data.block_length, seed, cache_bytes)


def _build_request(run: RunConfig, source: SourceSection) -> BuildRequest:
    if run.train.steps is None:
        problem = "cannot be given for a source, whose size is unknown until it is tokenised"
        raise UserError.of("train.epochs", problem, "give train.steps, or build shards first")
    folder = local_folder(run.data.shards or Path(run.output) / "data", "data.shards")
    template = None if source.template is None else read_template(source.template, "data.source.template")
    values = dict(source) | {"tokenizer": source.tokenizer or run.model.name, "template": template}
    return BuildRequest(values.pop("files"), folder, **values)


def embedded_corpus() -> Path:
    """The folder of the embedded corpus's shards, built where it is missing."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    try:
        return build_embedded_corpus(embedded_folder(cache / "gaguide"))
    except OSError as error:
        problem = f"the embedded corpus cannot be built in {cache} ({error.strerror})"
        raise UserError.of(
            "data.shards", problem, "set XDG_CACHE_HOME to a folder you can write to"
        ) from None
