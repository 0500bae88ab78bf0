"""`barnraise plan`: which rungs of the memory ladder a model takes on a machine, and how many columns fit.

Decides nothing; `moe.planner` does, the same search that a worker makes. Every figure is computed, none is measured. Of
a checkpoint only its configuration and the headers of its weights are read, or the configuration alone where there is
nothing else.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from barnraise.cli.headers import HeadersRead, read_headers
from barnraise.cli.options import Json, one_of
from barnraise.cli.output import print_json, print_table
from moe.presets import PRESETS
from protocol.amounts import parse_bytes
from protocol.codec_names import CODEC_NAMES
from protocol.errors import ConfigError
from protocol.recipe import FROZEN_DTYPES, MASTERS, MOMENTS, MUON, OPTIMIZERS, TRUNKS, Recipe, breaches
from protocol.residency import FROZEN, RESIDENCIES
from protocol.text import human_bytes

if TYPE_CHECKING:
    from moe.layout import Layout
    from moe.planner import Burden, Plan

_MULTIPLY: Final = {"fp32": 4, "bf16": 2}
CARDS_GIB: Final = (8, 12, 16, 24, 48, 80)
"""What cards have."""
MODELS_GIB: Final = (8, 12, 16, 24)
"""Those for which all published models are planned."""


def _recipe(**fields: Any) -> Recipe:
    recipe = Recipe(**fields)
    for field, expected, got in breaches(recipe):
        raise ConfigError(f"--{field.replace('_', '-')} {got!r:.40}: expected {expected}")
    return recipe


def plan(
    preset: Annotated[str, typer.Option(help=f"{one_of(PRESETS)}.")] = "tiny",
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="A Hugging Face folder instead of a preset, or a config.json alone."),
    ] = None,
    all_models: Annotated[
        bool, typer.Option("--all", help="Six published models, each on 8, 12, 16 and 24 GB, instead of one.")
    ] = False,
    memory: Annotated[
        str | None,
        typer.Option(
            help="Memory to train in, for example 24GB, or 12GB,12GB for two cards of a kind; without it, a row for"
            " each of 8 to 80 GB."
        ),
    ] = None,
    host_memory: Annotated[
        str | None,
        typer.Option(help="Of the machine, beside the GPU's; without it, as much as is needed. Makes it a GPU."),
    ] = None,
    residency: Annotated[str, typer.Option(help=f"{one_of(RESIDENCIES)}.")] = FROZEN,
    column_parts: Annotated[
        int,
        typer.Option(min=1, help="The run cuts each expert's column into so many, by layers; --all: where it can."),
    ] = 1,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Sequences a micro-batch; without it 4, or 1 where 4 do not fit.")
    ] = None,
    sequence_length: Annotated[int, typer.Option(min=1, help="Tokens a sequence.")] = 128,
    optimizer: Annotated[str, typer.Option(help=f"The run's: {one_of(OPTIMIZERS)}.")] = MUON,
    masters: Annotated[
        str | None, typer.Option(help=f"What the run trains weights in: {one_of(MASTERS)}; fp32, with --all bf16.")
    ] = None,
    moments: Annotated[
        str | None,
        typer.Option(help=f"What its optimizer remembers in: {one_of(MOMENTS)}; fp32, with --all compact."),
    ] = None,
    frozen_dtype: Annotated[
        str | None,
        typer.Option(
            help=f"What the run keeps columns in that a lease does not hold: {one_of(FROZEN_DTYPES)}; with --all int4."
        ),
    ] = None,
    trunk: Annotated[str, typer.Option(help=f"What the run trains of the trunk: {one_of(TRUNKS)}.")] = TRUNKS[0],
    codec: Annotated[
        str | None,
        typer.Option(help=f"What submissions are encoded in: {one_of(CODEC_NAMES)}; by default what runs begin with."),
    ] = None,
    lora_rank: Annotated[int, typer.Option(help="Of a lora trunk's factors.")] = Recipe().lora_rank,
    multiply: Annotated[
        str | None,
        typer.Option(
            help=f"What the machine multiplies in, {one_of(_MULTIPLY)}: bf16 on a GPU, fp32 on a CPU. Without it: fp32"
            " where --memory is given and --host-memory is not."
        ),
    ] = None,
    as_json: Json = False,
) -> int:
    """How many expert columns fit in a given memory, on which rungs of the memory ladder, and why; exit code 1 where
    not even one does.

    Everything is computed from shapes. Of a checkpoint only its configuration and the headers of its weights are read.
    """
    from coordinator.beginning import USUAL_CODEC
    from protocol.codecs import codec_named

    lowest = all_models
    recipe = _recipe(
        optimizer=optimizer,
        masters=masters or MASTERS[-1 if lowest else 0],
        moments=moments or MOMENTS[-1 if lowest else 0],
        frozen_dtype=frozen_dtype or FROZEN_DTYPES[-1 if lowest else 0],
        trunk=trunk,
        lora_rank=lora_rank,
    )
    one_machine = memory is not None and not all_models
    first, _, beside = (memory or "").partition(",")
    is_gpu = bool(beside) or host_memory is not None
    asked = _Asked(
        recipe=recipe,
        residency=residency,
        column_parts=column_parts,
        sequences=(4, 1) if batch is None else (batch,),
        sequence_length=sequence_length,
        codec=codec_named(codec or USUAL_CODEC).name,
        multiply=multiply or ("fp32" if one_machine and not is_gpu else "bf16"),
        on_gpu=not one_machine or is_gpu or multiply == "bf16",
        host_bytes=None if host_memory is None else parse_bytes(host_memory),
        second_bytes=parse_bytes(beside) if beside else None,
    )
    if asked.multiply not in _MULTIPLY:
        raise ConfigError(f"--multiply {asked.multiply!r:.40}: expected {one_of(_MULTIPLY)}")
    given = None if memory is None else parse_bytes(first)
    if all_models:
        return _all(asked, [gib << 30 for gib in MODELS_GIB] if given is None else [given], as_json=as_json)
    cut, read = _model(preset, checkpoint, asked)
    load = asked.load(cut)
    if given is None:
        return _cards(asked, load, read, as_json=as_json)
    return _one(asked.plan(load, given), load, read, as_json=as_json)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What is planned, but for the model and the device's memory."""

    recipe: Recipe
    residency: str
    column_parts: int
    sequences: tuple[int, ...]
    sequence_length: int
    codec: str
    multiply: str
    on_gpu: bool
    host_bytes: int | None
    second_bytes: int | None
    """Of a second card."""

    def cut(self, config: Any) -> Layout:
        """The model of a configuration of `transformers`."""
        from moe.layout import layout

        return layout(config, self.residency, self.column_parts)

    def load(self, cut: Layout) -> Burden:
        """Of one model."""
        from moe.planner import Burden
        from moe.second_card import SecondCard

        return Burden(
            layout=cut,
            recipe=self.recipe,
            sequence_length=self.sequence_length,
            compute_bytes=_MULTIPLY[self.multiply],
            on_gpu=self.on_gpu,
            codec=self.codec,
            second=None if self.second_bytes is None else SecondCard(device="cuda:1", memory_bytes=self.second_bytes),
        )

    def plan(self, load: Burden, memory_bytes: int) -> Plan:
        """On one machine."""
        from moe.planner import ANY_HOST, Memory, planned

        host = ANY_HOST if self.host_bytes is None else self.host_bytes
        return planned(load, Memory(memory_bytes, host), self.sequences)

    @property
    def in_words(self) -> str:
        """For a heading."""
        beside = "" if self.host_bytes is None else f" with {human_bytes(self.host_bytes)} of host memory"
        where = f"on a GPU{beside}" if self.on_gpu else "on a CPU"
        recipe = self.recipe
        return (
            f"{recipe.optimizer}, masters {recipe.masters}, moments {recipe.moments}, multiplied in {self.multiply}, "
            f"sent in {self.codec}, {where}; computed, not measured"
        )


def _model(preset: str, checkpoint: Path | None, asked: _Asked) -> tuple[Layout, HeadersRead | None]:
    if checkpoint is None:
        from moe.presets import preset as preset_config

        return asked.cut(preset_config(preset)), None
    place = checkpoint.expanduser()
    if place.is_file():
        from moe.published import config_of

        try:
            said = json.loads(place.read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(f"{place} is no config.json: {error!s:.200}") from error
        return asked.cut(config_of(said)), None
    read = read_headers(place)
    return asked.cut(read.facts.config), read


def in_figures(found: Plan, load: Burden) -> dict[str, object]:
    """A plan as data."""
    from moe.rungs import chosen

    return {
        "columns": found.columns,
        "fits": found.fits,
        "memory_bytes": found.memory_bytes,
        "needed_bytes": found.needed_bytes,
        "host_needed_bytes": found.needed.host,
        "mapped_bytes": found.mapped_bytes,
        "reserve_bytes": found.bytes_of("reserve"),
        "tokens_a_micro_batch": found.schedule.micro_batch * load.sequence_length,
        "micro_batch": found.schedule.micro_batch,
        "reason": found.reason,
        "recomputed": found.recomputed,
        "rungs": [
            {"rung": rung.name, "value": value, "chosen_by": rung.who, "what": rung.options[value], "costs": rung.costs}
            for rung, value in chosen(load.recipe, found.schedule, load.layout, on_gpu=load.on_gpu)
        ],
        "lines": [
            {"part": line.part, "memory_bytes": line.memory_bytes, "where": line.where, "why": line.why}
            for line in found.lines
        ],
        "computed": True,
    }


def _one(found: Plan, load: Burden, read: HeadersRead | None, *, as_json: bool) -> int:
    if as_json:
        print_json(in_figures(found, load) | ({} if read is None else {"read": read.in_figures}))
        return int(not found.fits)
    if read is not None:
        print(read.in_words)
    print(found.reason + "\n")
    rows = [
        {"part": line.part, "where": line.where, "memory": human_bytes(line.memory_bytes), "why": line.why}
        for line in found.lines
    ]
    print_table(("part", "where", "memory", "why"), rows)
    print(f"\nAt {found.schedule.micro_batch * load.sequence_length} tokens a micro-batch; computed, not measured:")
    from moe.rungs import chosen

    for rung, value in chosen(load.recipe, found.schedule, load.layout, on_gpu=load.on_gpu):
        costs = "" if value == next(iter(rung.options)) else f" ({rung.costs})"
        print(f"  {rung.options[value]}{costs}: the {rung.who}'s choice")
    if not found.fits:
        print(
            f"\nThe least memory for this is {human_bytes(found.needed_bytes)}; a smaller --batch or --sequence-length"
        )
        print("needs less, and so does a smaller model.")
    return int(not found.fits)


def _row(found: Plan, load: Burden, memory_bytes: int) -> dict[str, object]:
    return {
        "memory": human_bytes(memory_bytes),
        "columns": f"{found.columns if found.fits else 0} of {load.layout.columns}",
        "tokens": found.schedule.micro_batch * load.sequence_length,
        "device": human_bytes(found.needed.device),
        "reserve": human_bytes(found.bytes_of("reserve")),
        "host": human_bytes(found.needed.host),
        "mapped": human_bytes(found.mapped_bytes),
        "chosen": ", ".join(_chosen(found)),
    }


def _chosen(found: Plan) -> list[str]:
    """What the machine chose otherwise than usual; the run's rungs are in the heading."""
    from moe.rungs import told

    return list(told(found.schedule)) or ["nothing: all of it as usual"]


_COLUMNS: Final = ("memory", "columns", "tokens", "device", "reserve", "host", "mapped", "chosen")


def _cards(asked: _Asked, load: Burden, read: HeadersRead | None, *, as_json: bool) -> int:
    plans = [(gib << 30, asked.plan(load, gib << 30)) for gib in CARDS_GIB]
    if as_json:
        print_json(
            {"plans": [in_figures(found, load) for _, found in plans]}
            | ({} if read is None else {"read": read.in_figures})
        )
    else:
        if read is not None:
            print(read.in_words)
        print(asked.in_words + "\n")
        print_table(_COLUMNS, [_row(found, load, memory_bytes) for memory_bytes, found in plans])
        for memory_bytes, found in plans:
            if not found.fits:
                print(f"\n{human_bytes(memory_bytes)}: {found.reason}")
    return int(not any(found.fits for _, found in plans))


def _all(asked: _Asked, memories: list[int], *, as_json: bool) -> int:
    from moe.published import PUBLISHED, published

    loads: dict[str, Burden] = {}
    for name in PUBLISHED:
        with suppress(ConfigError):  # of those alone whose layers can be cut so
            loads[name] = asked.load(asked.cut(published(name)))
    if not loads:
        raise ConfigError(f"--column-parts {asked.column_parts}: the layers of no published model can be cut so")
    plans = [(name, memory, asked.plan(load, memory)) for name, load in loads.items() for memory in memories]
    if as_json:
        print_json({"plans": [{"model": name} | in_figures(found, loads[name]) for name, _, found in plans]})
        return int(not any(found.fits for *_, found in plans))
    print(asked.in_words + "\n")
    print_table(("model", *_COLUMNS), [{"model": name, **_row(found, loads[name], one)} for name, one, found in plans])
    for name, memory, found in plans:
        if not found.fits and memory == max(memories):
            print(f"\n{name} on {human_bytes(memory)}: {found.reason}")
    return int(not any(found.fits for *_, found in plans))
