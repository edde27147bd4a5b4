"""`gaguide checkpoint list | verify | export`: lists, verifies and exports the checkpoints of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from gaguide.log import run_files

app = typer.Typer(help="List, verify and export the checkpoints of a run.", no_args_is_help=True)


@app.command("list")
def list_checkpoints(
    run: Annotated[Path, typer.Argument(help="A run's output folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List a run's checkpoints: step, size, completeness, ranks, ZeRO stage, held-out loss."""
    from gaguide.checkpoint.folder import describe_checkpoints

    found = describe_checkpoints(run)
    if as_json:
        typer.echo(json.dumps({"checkpoints": [each.as_record() for each in found]}, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("step", "size", "whole", "ranks", "ZeRO", "held-out loss", "")
    for each in found:
        table.add_row(
            str(each.step),
            f"{each.size / 1e6:,.1f} MB",
            "yes" if not each.problems else "; ".join(each.problems),
            str(each.world_size or "?"),
            "?" if each.zero_stage is None else str(each.zero_stage),
            "" if each.lm_loss is None else f"{each.lm_loss:.4f}",
            ", ".join(name for name in ("latest", "best") if getattr(each, name)),
        )
    Console().print(table)


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="A run's output folder, or one checkpoint's.")],
) -> None:
    """Compare every file with its hash. The exit code is 1 if a checkpoint is damaged."""
    from gaguide.checkpoint.folder import describe_checkpoints

    found = describe_checkpoints(folder)
    for each in found:
        typer.echo(f"step {each.step}: {'; '.join(each.problems) or f'whole, {each.files} files'}")
    raise typer.Exit(1 if any(each.problems for each in found) else 0)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="A run's output folder, or one checkpoint's.")],
    output: Annotated[Path, typer.Option(help="Folder to write. It must not exist.")],
    step: Annotated[str, typer.Option(help="latest, best, or the number of a step.")] = "latest",
    dtype: Annotated[str, typer.Option(help="Precision of the weights: fp32, bf16 or fp16.")] = "fp32",
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Of a run with train.lora: the adapters alone, for PEFT.")
    ] = False,
    base: Annotated[
        Path | None, typer.Option(help="Where the base model of adapters is now, if it was moved.")
    ] = None,
) -> None:
    """Write a folder for AutoModelForCausalLM.from_pretrained: safetensors and the tokenizer.

    Adapters are merged into their base, or with --adapter written alone, for PeftModel.from_pretrained.
    """
    from gaguide.model.precision import PRECISIONS, torch_dtype

    if dtype not in PRECISIONS:
        from gaguide.errors import UserError, suggestion

        raise UserError.of("--dtype", "unknown precision", suggestion(dtype, PRECISIONS), dtype)
    from transformers.utils import logging as transformers_logging

    from gaguide.checkpoint import export_adapter, export_model, read_companions
    from gaguide.checkpoint.folder import choose
    from gaguide.errors import UserError
    from gaguide.files import expand_home, local_folder, read_object
    from gaguide.publish import write_card

    transformers_logging.disable_progress_bar()
    folder, output = expand_home(folder), local_folder(output, "--output")
    if output.exists():
        raise UserError.of("--output", "already exists", "name another folder", str(output))
    # `choose` compares the hashes, so its pickled files are safe to read.
    chosen = choose(folder, step)
    companions = read_companions(chosen.path, None if base is None else local_folder(base, "--base"))
    if adapter and companions.adapter is None:
        problem = "the run has trained the model's own weights, not adapters"
        raise UserError.of("--adapter", problem, "leave it out", str(folder))
    if adapter and dtype != "fp32":
        raise UserError.of("--dtype", "adapters are written in fp32", "leave it out", dtype)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if adapter:
            export_adapter(chosen.path, companions, output)
        else:
            export_model(chosen.path, companions, output, check=True, dtype=torch_dtype(dtype))
        if chosen.step == read_object(folder / run_files.SUMMARY).get("steps"):
            write_card(folder, output)  # whose numbers are of the last step
    except RuntimeError as error:
        if dtype == "fp32":
            raise
        raise UserError.of("--dtype", str(error), "use bf16 or fp32", dtype) from None
    except OSError as error:
        problem = f"cannot be written ({error.strerror or error})"
        raise UserError.of("--output", problem, "name another folder", str(output)) from None
    if dtype != "fp32":
        typer.echo(f"rounded to {dtype}: the run's numbers are not of these weights; evaluate {output}")
    checked = "its adapters" if adapter else "its tensors are counted, a forward pass is finite"
    typer.echo(f"step {chosen.step} → {output}: {checked}")
