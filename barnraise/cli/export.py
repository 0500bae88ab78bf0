"""`barnraise coordinator export`: a version of the model as an ordinary Hugging Face checkpoint.

Decides which version and dtype are meant; `moe/export.py` writes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from barnraise.cli.options import Json, RunArgument
from barnraise.cli.output import ProgressLine, print_json

if TYPE_CHECKING:
    from coordinator.store.versions import Tensors
    from protocol.ids import BlockId


def export(
    folder: RunArgument,
    out: Annotated[Path, typer.Argument(help="Hugging Face folder to write: new, or empty.")],
    version: Annotated[int | None, typer.Option(min=0, help="Which version; the latest by default.")] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="fp32, bf16 or fp16; by default that of the checkpoint the run began with, else fp32."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the checkpoint there, once this one is whole.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a version of the model as an ordinary Hugging Face checkpoint, its tokenizer and settings beside it."""
    from coordinator.run.folder import RunFolder
    from coordinator.store.versions import Versions
    from moe.export import CHECKPOINT_KIND, export_checkpoint, require_room
    from protocol.errors import ConfigError

    run = RunFolder.open(folder)
    require_room(out, replace=force)
    replaces = (out / CHECKPOINT_KIND.completed_by).exists()
    layout = run.layout()
    versions = Versions(run.root / "versions", run.artifacts().blocks, layout)
    newest = run.published_version()
    kept = [number for number in versions.kept() if number <= newest]
    chosen = newest if version is None else version
    manifest = versions.manifest_digest(chosen)
    if manifest is None or chosen not in kept:
        raise ConfigError(f"version {chosen} is not kept; these are: {', '.join(map(str, kept))}")
    kept_in = dtype or run.export_dtype
    companions = run.companions(run.dataset())
    with ProgressLine(quiet=as_json) as tell:
        blocks: dict[BlockId, Tensors] = {}
        for block, ref in versions.manifest(manifest).blocks.items():
            tell(f"checking blocks: {len(blocks)} of {len(layout.blocks)}")
            blocks[block] = versions.load_block(block, ref)
        export_checkpoint(
            blocks,
            layout,
            out,
            companions=companions,
            dtype=kept_in,
            replace=force,
            told=lambda done, total: tell(f"writing: {done / 1e6:,.0f} of {total / 1e6:,.0f} million parameters"),
        )
    if as_json:
        print_json({"version": chosen, "checkpoint": str(out), "dtype": kept_in})
    else:
        instead = ", in place of the checkpoint that was there" if replaces else ""
        print(f"version {chosen} is in {out}, in {kept_in}{instead}")
