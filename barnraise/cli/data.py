"""Commands about text: make a tokenized, content-addressed dataset, and read its card.

Decides nothing; `coordinator/datasets/` does.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from barnraise.cli.options import Json, number
from barnraise.cli.output import ProgressLine, documents_told, print_json, print_pairs, say_note
from protocol.text import human_bytes

if TYPE_CHECKING:
    from coordinator.datasets import DatasetCard

app = typer.Typer(no_args_is_help=True, help="Make and look at datasets.")


@app.command()
def prepare(
    sources: Annotated[list[str], typer.Argument(help="Folders, files, stdlib, or datasets:NAME.")],
    out: Annotated[Path, typer.Option(help="Folder in which the dataset gets a folder of its own.")],
    tokenizer: Annotated[
        str,
        typer.Option(
            help="bytes, a tokenizer.json, or a checkpoint's folder: a run that begins with a checkpoint needs data "
            "that was prepared with it."
        ),
    ] = "bytes",
    heldout: Annotated[
        float,
        typer.Option(
            parser=number(above=0, below=1), metavar="SHARE", help="Share of the documents that no worker ever sees."
        ),
    ] = 0.05,
    licence: Annotated[str | None, typer.Option(help="Under which licence the text may be used.")] = None,
    allow: Annotated[list[str] | None, typer.Option(help="A use that is allowed; may be repeated.")] = None,
    as_json: Json = False,
) -> None:
    """Tokenize text into a dataset with a held-out part and a card."""
    from coordinator.datasets import prepare as prepare_dataset

    notes: list[str] = []
    with ProgressLine(quiet=as_json) as tell:
        dataset = prepare_dataset(
            sources,
            out,
            tokenizer=tokenizer,
            heldout_share=heldout,
            licence=licence,
            allowed_uses=allow,
            progress=documents_told(tell),
            note=notes.append,
        )
    for sentence in notes:
        say_note(sentence)
    _print_card(dataset.card, dataset.folder, as_json=as_json)


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(help="A dataset's folder.")],
    verify: Annotated[bool, typer.Option("--verify", help="Read every byte against the card.")] = False,
    as_json: Json = False,
) -> None:
    """Show a dataset's card: source, licence, allowed uses, counts, digest."""
    from coordinator.datasets import Dataset

    dataset = Dataset.open(folder, verify=verify)
    _print_card(dataset.card, dataset.folder, as_json=as_json)


def _print_card(card: DatasetCard, folder: Path, *, as_json: bool) -> None:
    if as_json:
        print_json(dataclasses.asdict(card) | {"folder": str(folder)})
        return
    print_pairs(
        (
            ("folder", folder),
            ("digest", card.digest),
            ("tokenizer", f"{card.tokenizer}, {card.vocab_size} tokens"),
            ("training", f"{card.train_tokens:,} tokens, {card.train_documents:,} documents"),
            ("held out", f"{card.heldout_tokens:,} tokens, {card.heldout_documents:,} documents"),
            ("licence", card.licence),
            ("allowed uses", ", ".join(card.allowed_uses)),
        )
    )
    for source in card.sources:
        counts = f"{source.documents:,} documents, {human_bytes(source.text_bytes)}"
        left_out = f"{source.duplicates} duplicates, {source.skipped} skipped"
        print(f"source        {source.kind}: {source.name}, {counts}, {left_out}")
