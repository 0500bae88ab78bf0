"""Commands about models: what fits in this memory, what a checkpoint writes, and which versions are installed.

Decides nothing; `moe/` does.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from barnraise.cli.options import MOST_SEED, Json, number, one_of
from barnraise.cli.output import parse_bytes, print_json, print_pairs, print_sample, print_table, say_note
from moe.presets import PRESETS
from protocol.errors import ConfigError
from protocol.recipe import MASTERS, MOMENTS, MUON, OPTIMIZERS, TRUNKS, Recipe, breaches
from protocol.residency import FROZEN, RESIDENCIES
from protocol.text import human_bytes

if TYPE_CHECKING:
    from moe.export import CheckpointFacts

_MULTIPLY = {"fp32": 4, "bf16": 2}


def version(as_json: Json = False) -> None:
    """Which versions are installed."""
    from barnraise import __version__
    from barnraise.versions import installed_versions

    found = installed_versions() | {"barnraise": __version__}
    print_json(found) if as_json else print_pairs(found.items())


def sample(
    checkpoint: Annotated[Path, typer.Argument(help="A Hugging Face folder, such as a run's checkpoint.")],
    prompt: Annotated[str, typer.Option(help="What the text begins with.")] = "def ",
    tokens: Annotated[int, typer.Option(min=1, help="How many tokens to write.")] = 200,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="The same seed writes the same text.")] = 0,
    temperature: Annotated[
        float,
        typer.Option(
            parser=number(least=0, most=100),
            metavar="NUMBER",
            help="Below 1 it is more careful; 0 always takes the likeliest token.",
        ),
    ] = 0.8,
    as_json: Json = False,
) -> None:
    """Let a checkpoint write some text."""
    if not (checkpoint / "config.json").is_file():
        raise ConfigError(f"{checkpoint} holds no checkpoint: there is no config.json in it")
    from moe.export import sample as write_sample

    text = write_sample(checkpoint, prompt, tokens, seed, temperature=temperature)
    if as_json:
        print_json({"prompt": prompt, "text": text, "seed": seed, "temperature": temperature})
    else:
        print_sample(prompt + text)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """What of a checkpoint was looked at."""

    facts: CheckpointFacts
    seconds: float

    @property
    def in_figures(self) -> dict[str, object]:
        """Bytes that were read, and of how many, and how long it took."""
        return {
            "parameters": self.facts.model.num_parameters(),
            "read_bytes": self.facts.weights.header_bytes + self._config_bytes,
            "weights_bytes": self.facts.weights.payload_bytes,
            "seconds": round(self.seconds, 3),
            "remarks": list(self.facts.remarks),
        }

    @property
    def in_words(self) -> str:
        """The same for a person."""
        figures = self.in_figures
        parameters, read, weights = (int(str(figures[key])) for key in ("parameters", "read_bytes", "weights_bytes"))
        return (
            f"{parameters / 1e6:,.1f} million parameters in {self.facts.dtype}; read: {human_bytes(read)} of headers "
            f"and configuration in {self.seconds:.2f} s, none of {human_bytes(weights)} of weights"
        )

    @property
    def _config_bytes(self) -> int:
        return (self.facts.folder / "config.json").stat().st_size


def _read_headers(checkpoint: Path) -> _Read:
    """ConfigError where it could not be trained on, as far as configuration and headers tell."""
    from moe.export import inspect_checkpoint

    began_s = time.perf_counter()
    facts = inspect_checkpoint(checkpoint, only_headers=True)
    for remark in facts.remarks:
        say_note(remark)
    return _Read(facts=facts, seconds=time.perf_counter() - began_s)


def _recipe(**fields: Any) -> Recipe:
    recipe = Recipe(**fields)
    for field, expected, got in breaches(recipe):
        raise ConfigError(f"--{field.replace('_', '-')} {got!r:.40}: expected {expected}")
    return recipe


def plan(
    preset: Annotated[str, typer.Option(help=f"{one_of(PRESETS)}.")] = "tiny",
    checkpoint: Annotated[Path | None, typer.Option(help="A Hugging Face folder instead of a preset.")] = None,
    memory: Annotated[str, typer.Option(help="Memory to train in, for example 24GB.")] = "8GB",
    residency: Annotated[str, typer.Option(help=f"{one_of(RESIDENCIES)}.")] = FROZEN,
    batch: Annotated[int, typer.Option(min=1, help="Sequences an inner step.")] = 16,
    sequence_length: Annotated[int, typer.Option(min=1, help="Tokens a sequence.")] = 128,
    optimizer: Annotated[str, typer.Option(help=f"The run's: {one_of(OPTIMIZERS)}.")] = MUON,
    masters: Annotated[str, typer.Option(help=f"What the run trains weights in: {one_of(MASTERS)}.")] = MASTERS[0],
    moments: Annotated[str, typer.Option(help=f"What its optimizer remembers in: {one_of(MOMENTS)}.")] = MOMENTS[0],
    trunk: Annotated[str, typer.Option(help=f"What the run trains of the trunk: {one_of(TRUNKS)}.")] = TRUNKS[0],
    lora_rank: Annotated[int, typer.Option(help="Of a lora trunk's factors.")] = Recipe().lora_rank,
    multiply: Annotated[
        str, typer.Option(help=f"What the machine multiplies in, {one_of(_MULTIPLY)}: bf16 on a GPU that has it.")
    ] = "fp32",
    as_json: Json = False,
) -> int:
    """How many expert columns fit in a given memory, and why; exit code 1 where not even one does.

    Of a checkpoint only its configuration and the headers of its weights are read.
    """
    recipe = _recipe(optimizer=optimizer, masters=masters, moments=moments, trunk=trunk, lora_rank=lora_rank)
    if multiply not in _MULTIPLY:
        raise ConfigError(f"--multiply {multiply!r:.40}: expected {one_of(_MULTIPLY)}")
    from moe.layout import layout
    from moe.planner import plan as make_plan
    from moe.presets import preset as preset_config

    read = None if checkpoint is None else _read_headers(checkpoint.expanduser())
    found = make_plan(
        layout(preset_config(preset) if read is None else read.facts.config, residency),
        parse_bytes(memory),
        batch_sequences=batch,
        sequence_length=sequence_length,
        compute_bytes=_MULTIPLY[multiply],
        recipe=recipe,
    )
    lines = [{"part": line.part, "memory_bytes": line.memory_bytes, "why": line.why} for line in found.lines]
    if as_json:
        print_json(
            {
                "columns": found.columns,
                "fits": found.fits,
                "memory_bytes": found.memory_bytes,
                "needed_bytes": found.needed_bytes,
                "reason": found.reason,
                "recomputed": found.recomputed,
                "lines": lines,
            }
            | ({} if read is None else {"read": read.in_figures})
        )
        return int(not found.fits)
    if read is not None:
        print(read.in_words)
    print(found.reason + "\n")
    print_table(
        ("part", "memory", "why"),
        [
            {"part": row["part"], "memory": human_bytes(int(str(row["memory_bytes"]))), "why": row["why"]}
            for row in lines
        ],
    )
    if not found.fits:
        print(
            f"\nThe least memory for this is {human_bytes(found.needed_bytes)}; a smaller --batch or --sequence-length"
        )
        print("needs less, and so does a smaller model.")
    return int(not found.fits)
