"""The command that measures a checkpoint, and how it tells what was found.

Decides words and tables only; `barnraise/evaluation.py` measures.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from barnraise.cli.options import Json
from barnraise.cli.output import ProgressLine, print_json, print_pairs, print_table, say_note
from protocol.amounts import parse_bytes

if TYPE_CHECKING:
    from barnraise.evaluation import Evaluation
    from moe.findings import ExpertHealth

_DIGEST_SHOWN = 12
EVALUATION, PICTURE = "evaluation.json", "health.png"


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A Hugging Face folder, such as a run's checkpoint.")],
    data: Annotated[
        str,
        typer.Option(help="Its held-out part is read: a dataset, a file, a folder, stdlib, datasets:NAME."),
    ],
    sequence_length: Annotated[int, typer.Option(min=1, help="Tokens a sequence.")] = 128,
    limit: Annotated[int, typer.Option(min=0, help="Sequences, at even distances; 0 reads all of them.")] = 256,
    batch: Annotated[int, typer.Option(min=1, help="Sequences at a time.")] = 16,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    health: Annotated[
        bool, typer.Option("--health", help="Experts layer by layer; what is lost where columns are absent, or random.")
    ] = False,
    columns: Annotated[
        int | None, typer.Option(min=1, help="With --health: columns that a shard holds; half of them by default.")
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Read experts from the disk while it runs, and keep so much of them in memory, for example 4GB. A "
            "model that has no room in half of the free memory is read so in any case.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write evaluation.json and health.png into this folder.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier evaluation in that folder.")] = False,
    as_json: Json = False,
) -> None:
    """Loss and perplexity on text that no worker saw, with standard errors, and how the experts are doing."""
    from protocol.errors import ConfigError

    if not (checkpoint / "config.json").is_file():
        raise ConfigError(f"{checkpoint} holds no checkpoint: there is no config.json in it")
    if out is not None:
        _require_room(out, force=force)
    from barnraise.evaluation import evaluate as measure

    notes: list[str] = []
    with ProgressLine(quiet=as_json) as tell:
        found = measure(
            checkpoint,
            data,
            sequence_length=sequence_length,
            limit=limit or None,
            batch=batch,
            device=device,
            columns_held=columns,
            drift=health,
            memory_bytes=None if memory is None else parse_bytes(memory),
            tell=tell,
            note=notes.append,
        )
    for sentence in notes:
        say_note(sentence)
    if out is not None:
        _write(found, out)
    if as_json:
        print_json(found.as_dict(matrices=False))
        return
    print_pairs(_lines(found, out))
    if health:
        print()
        _print_layers(found.health)


def _lines(found: Evaluation, out: Path | None) -> list[tuple[str, object]]:
    lines: list[tuple[str, object]] = [
        ("loss", f"{found.loss:.4f} ± {found.loss_se:.4f} nats a token"),
        ("perplexity", f"{found.perplexity:,.2f} ± {found.perplexity_se:,.2f}"),
    ]
    if found.bits_per_byte is not None:
        average = "" if found.bytes_exact else ", by the dataset's average bytes a token"
        lines.append(("bits a byte", f"{found.bits_per_byte:.4f} ± {found.bits_per_byte_se:.4f}{average}"))
    of_all = f"{found.sequences:,} of {found.heldout_sequences:,} held-out sequences of {found.sequence_length} tokens"
    lines.append(("read", f"{of_all}, dataset {found.dataset[:_DIGEST_SHOWN]} ({found.tokenizer}), on {found.device}"))
    lines.append(("experts", found.health.in_words))
    if found.random_routing is not None:
        lines.append(("routing", found.random_routing.in_words))
    if found.health.drift is not None:
        lines.append(("absent", found.health.drift.in_words))
    elif "norm_topk_prob" in found.health.no_drift:
        lines.append(("absent", f"not measured: {found.health.no_drift}"))
    if out is not None:
        lines.append(("written", f"{out / EVALUATION}, {out / PICTURE}"))
    return lines


def _print_layers(health: ExpertHealth) -> None:
    drift = health.drift
    rows: list[dict[str, object]] = []
    for place, one in enumerate(health.layers):
        cosines = [one.cosine[a][b] for a in range(health.columns) for b in range(a)]
        rows.append(
            {
                "layer": one.layer,
                "min load": min(one.load),
                "max load": max(one.load),
                "token entropy": one.token_entropy,
                "load entropy": one.load_entropy,
                "max cosine": max(cosines, default=None),
                "changed if absent": None if drift is None else drift.changed_by_layer[place],
                "KL if absent": None if drift is None else drift.kl_by_layer[place],
            }
        )
    print_table(list(rows[0]), rows)
    print(f"\ncolumns' loads: {', '.join(f'{load:.2f}' for load in health.column_load)}")
    print(f"random experts of this size have cosines of 0 ± {health.random_cosine:.4f}")
    for dead in health.dead:
        print(f"dead: layer {dead.layer}, column {dead.column}, load {dead.load:.3f} (below {health.dead_load})")
    for pair in health.duplicates:
        a, b = pair.columns
        print(f"duplicates: layer {pair.layer}, columns {a} and {b}, cosine {pair.cosine:.3f}")


def _write(found: Evaluation, out: Path) -> None:
    import json

    from barnraise.charts.health import draw_health
    from protocol.folders import work_inside

    with work_inside(out) as work:
        text = json.dumps(found.as_dict(), indent=2, allow_nan=False)
        (work / EVALUATION).write_text(text + "\n", encoding="utf-8")
        draw_health(found.health, work / PICTURE, title=found.checkpoint)
        for name in (PICTURE, EVALUATION):
            (work / name).replace(out / name)


def _require_room(out: Path, *, force: bool) -> None:
    """ConfigError where the results could not be written, or would replace others: before minutes of measuring."""
    from protocol.errors import ConfigError
    from protocol.folders import work_inside

    there = [name for name in (EVALUATION, PICTURE) if (out / name).exists()]
    if there and not force:
        raise ConfigError(f"{out} holds {' and '.join(there)} already: choose another folder, or replace with --force")
    existed = out.exists()
    with work_inside(out):
        pass
    if not existed:
        out.rmdir()
