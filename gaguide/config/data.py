"""The section `data` of a run: the text that it trains on."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator

from gaguide.config.fields import Fraction, PathText, Positive, PositiveInt, Section, words, words_at_home
from gaguide.numbers import whole_number

EMBEDDED_SHARDS = "embedded"
"""Stands for the shards of the package's own text, made when they are first used."""


class MixtureEntry(Section):
    shards: PathText
    """Folder or address of shards, as `data.shards`."""
    weight: Positive
    """Share of the training blocks that come from it, in any unit."""


class SourceSection(Section):
    files: Annotated[tuple[str, ...], BeforeValidator(words_at_home), Field(min_length=1)]
    """Sources, as for `gaguide data build --source`: files, a folder, a glob, an address, a hub data set."""
    tokenizer: PathText | None = None
    """Folder or hub name of the tokenizer; null uses the model's."""
    split: str | None = None
    """Split of a hub data set; null is train."""
    revision: str | None = None
    """Commit of a hub data set; null is its newest."""
    text_field: str = "text"
    """Column or field that holds the text."""
    spans: Annotated[tuple[str, ...], BeforeValidator(words)] = ()
    """Fields of character spans in the text, for the patterns spans:FIELD and PATTERN@FIELD."""
    chat: str | None = None
    """Field of conversations instead of text; the loss counts the assistant's words."""
    template: PathText | None = None
    """File with the chat template (Jinja); null uses the tokenizer's."""
    rows: PositiveInt | None = None
    """Use only this many rows from the start; null uses all."""
    bos: bool | None = None
    """Begin every document with the tokenizer's begin-of-text id; null does as the tokenizer itself does."""
    separator: str = "eos"
    """End of every document: eos, none, or the text of one token of the tokenizer."""
    max_dropped: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the rows that may give no document; the build fails where more do."""
    validation_fraction: Fraction = 0.005
    """Share of the documents that is held out."""
    shard_tokens: Annotated[int, Field(ge=1, le=10**9), BeforeValidator(whole_number)] = 10_000_000
    """Approximate number of tokens in a shard: training starts when the first one exists."""
    workers: PositiveInt = 2
    """Processes that tokenize during training."""


class DataSection(Section):
    shards: PathText | None = None
    """Folder or address of shards made by `gaguide data build`, or `embedded`; a `source` is built there."""
    mixture: tuple[MixtureEntry, ...] = ()
    """Instead of `shards`: several folders of shards and their weights."""
    source: SourceSection | None = None
    """Train from text without a build step before: it is tokenized into shards during training."""
    block_length: Annotated[int, Field(ge=2), BeforeValidator(whole_number)] = 1024
    """Tokens in each training sequence."""
    isolate_documents: bool = False
    """Keep attention, positions and guidance targets inside a document where a block holds several."""
    cache_gb: Positive = 20.0
    """Gigabytes of each host's local disk that shards from an address may occupy."""

    @model_validator(mode="after")
    def _one_origin(self) -> DataSection:
        if self.mixture and (self.shards is not None or self.source is not None):
            raise ValueError("must have only one of shards (with or without source) and mixture")
        if not self.mixture and self.shards is None and self.source is None:
            raise ValueError("must have one of shards (a folder, an address, embedded), mixture, source")
        if self.source is not None and self.shards == EMBEDDED_SHARDS:
            raise ValueError("shards must be a folder for the source's shards, or be omitted")
        return self
