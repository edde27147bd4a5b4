"""`gaguide data import` and `gaguide data export`: corpora that are tokenised already."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from gaguide.cli.options import takes
from gaguide.config.arguments import shared

_FORMATS = "nanogpt (.bin), megatron (.bin and .idx), mds (streaming), parquet (lists of ids)"


@dataclass(frozen=True)
class ImportOptions:
    """Options of `gaguide data import`."""

    origin: Annotated[str, typer.Option("--from", help=f"Format of the files: {_FORMATS}.")]
    tokenizer: Annotated[str, typer.Option(help="The tokenizer that made the ids: a folder or a hub name.")]
    output: Annotated[Path, typer.Option(help="Folder for the shards.")]
    validation: Annotated[
        list[str] | None, typer.Option(help="Files of the held-out documents. May be repeated.")
    ] = None
    validation_fraction: Annotated[
        float | None,
        typer.Option(
            help="Share of the documents that is held out, without --validation.",
            show_default="0.005, 0.05 below 50 MB",
        ),
    ] = None
    separator: Annotated[
        str,
        typer.Option(
            help="The token that ends every document, for formats that do not store where documents end."
        ),
    ] = "eos"
    column: Annotated[
        str | None,
        typer.Option(help="Column of the ids.", show_default="tokens of mds, input_ids of parquet"),
    ] = None
    joined: Annotated[
        bool, typer.Option("--joined", help="Rows are blocks of one stream, which is split at the separator.")
    ] = False
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Type of the ids, of nanogpt and of bytes in mds.", show_default="of nanogpt uint16"
        ),
    ] = None
    shard_tokens: Annotated[int, typer.Option(help="Approximate number of tokens in a shard.")] = 50_000_000


@takes(ImportOptions)
def import_command(
    options: ImportOptions,
    files: Annotated[list[str], typer.Argument(help="Files, folders, Megatron prefixes or quoted globs.")],
) -> None:
    """Make shards of a corpus that is tokenised already; nothing is encoded again."""
    from gaguide.cli.shards import describe_shards
    from gaguide.data.exchange.importing import ImportRequest, import_shards
    from gaguide.files import expand_home, output_folder
    from gaguide.log import say

    output = output_folder(options.output, "--output")
    paths = {
        "output": output,
        "tokenizer": str(expand_home(options.tokenizer)),
        "validation": tuple(str(expand_home(name)) for name in options.validation or ()),
    }
    request = ImportRequest(
        train=tuple(str(expand_home(name)) for name in files),
        format=options.origin,
        **shared(options, ImportRequest) | paths,
    )
    manifest = import_shards(request, lambda tokens: say(f"{tokens:,} ids written"))
    typer.echo(describe_shards(output, manifest))
    typer.echo(
        f"  begins      {_beginning(output)}\nplausible text shows that the tokenizer is the right one"
    )


def _beginning(folder: Path) -> str:
    """The first words of the first document, in quotes."""
    from gaguide.data.format.manifest import TOKENIZER_FOLDER
    from gaguide.data.format.tokenizer import load_tokenizer
    from gaguide.data.read.blocks import CACHE_BYTES
    from gaguide.data.read.folder import open_folder

    source = open_folder(folder, CACHE_BYTES)
    shard = source.open(next(info for infos in source.manifest.splits.values() for info in infos))
    ids = shard.tokens[: min(int(shard.offsets[1]), 24)].tolist()
    return repr(load_tokenizer(folder / TOKENIZER_FOLDER).decode(ids))


@dataclass(frozen=True)
class ExportOptions:
    """Options of `gaguide data export`."""

    to: Annotated[str, typer.Option(help=f"Format: {_FORMATS}.")]
    output: Annotated[Path, typer.Option(help="New folder for the files and the tokenizer.")]
    without_marks: Annotated[
        bool,
        typer.Option("--without-marks", help="Leave out marks of tokens, for which only parquet has room."),
    ] = False


@takes(ExportOptions)
def export_command(
    options: ExportOptions, shards: Annotated[str, typer.Argument(help="Folder or address of shards.")]
) -> None:
    """Write shards in the format of another program, with their tokenizer."""
    from gaguide.data.exchange.export import export_shards
    from gaguide.files import expand_home, output_folder
    from gaguide.log import say

    output = output_folder(options.output, "--output")
    name = shards if "://" in shards else str(expand_home(shards))

    def show(done: int, total: int) -> None:
        say(f"{done:,} of {total:,} ids written")

    record = export_shards(name, output, options.to, options.without_marks, show)
    for split, tokens in record.tokens.items():
        typer.echo(
            f"{output}: {split}, {record.documents[split]:,} documents, {tokens:,} ids ({record.format})"
        )
