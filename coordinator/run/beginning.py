"""What can be said about a run before any work: whether model, data and settings go together.

Decides refusals only, each a sentence that names what to change; `init` and a simulation ask the same. Reads
configurations and cards, no weights and no text. Touches nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from coordinator.engine.codec_rules import MISSED, cost_of
from coordinator.engine.config import EngineConfig, check_config
from coordinator.run.carving import carved, chosen_share
from coordinator.settings import RunSettings
from protocol.codecs import CODECS
from protocol.errors import ConfigError
from protocol.ids import RunId
from protocol.recipe import AS_COMPUTED, WHOLE_TRUNK
from protocol.residency import FROZEN

if TYPE_CHECKING:
    from coordinator.datasets import Dataset
    from moe.layout import Layout


def check_beginning(settings: RunSettings) -> Layout:
    """The layout of the run that `settings` describe; ConfigError where it could not begin, as far as that is known."""
    from coordinator.datasets import Dataset, is_prepared
    from coordinator.datasets.sources import parse_source

    cut = _layout_of(settings)
    _check_length(cut, settings)
    _check_trunk(settings)
    if not is_prepared(settings.data):
        parse_source(settings.data)
        return cut
    dataset = Dataset.open(Path(settings.data).expanduser())
    check_pair(cut, dataset, settings)
    share, _ = chosen_share(settings, dataset)
    # how many sequences are left for leases does not depend on the secret
    planned_engine(settings, cut, carved(dataset, settings, share, secret=bytes(32)), RunId("run"))
    return cut


def check_pair(cut: Layout, dataset: Dataset, settings: RunSettings) -> str | None:
    """ConfigError where the model cannot read the data; a sentence of doubt where that cannot be told."""
    from moe.tokenizer import require_same_tokenizer

    _check_length(cut, settings)
    return require_same_tokenizer(
        None if settings.checkpoint is None else Path(settings.checkpoint).expanduser(),
        dataset.tokenizer_json,
        data=settings.data,
        tokenizer=dataset.card.tokenizer,
        model_vocab_size=int(cut.config_json["vocab_size"]),
    )


def planned_engine(settings: RunSettings, cut: Layout, dataset: Dataset, run_id: RunId) -> EngineConfig:
    """The engine's configuration on this model and this data; ConfigError where there is too little of it."""
    train_sequences = dataset.train_sequences(settings.sequence_length)
    if train_sequences < 1 or len(dataset.heldout_all(settings.sequence_length, 1)) < 1:
        raise ConfigError(
            f"{settings.data} is too small for sequences of {settings.sequence_length} tokens: "
            "give more text, or a smaller sequence length"
        )
    config = settings.engine_config(
        run_id=run_id, columns=cut.columns, train_sequences=train_sequences, min_columns=cut.min_columns
    )
    check_config(config)
    dtype = config.inner.frozen_dtype
    if settings.residency != FROZEN and dtype != AS_COMPUTED:
        raise ConfigError(
            f"`inner.frozen_dtype` {dtype!r} is for residency {FROZEN}: where it is {settings.residency}, a shard has "
            "no experts but those that it holds"
        )
    return config


def check_vouching(config: EngineConfig, *, founders: int, accept_unaudited: bool) -> None:
    """ConfigError where an open run could tell no liar from an honest worker, and nobody said that this is accepted.

    A budget alone audits nothing where the coordinator computes no leases again: that takes founders.
    """
    replays = config.audits.budget > 0.0 and config.audits.by_coordinator
    if config.open_run and not founders and not replays and not accept_unaudited:
        raise ConfigError(
            "an open run needs somebody to vouch for what strangers send: leases that the coordinator computes again "
            "(`audits.budget` above 0, which is the default, with `audits.by_coordinator`), or founders "
            "(`--founders 1` makes a join link for one); `--accept-unaudited` begins it without either"
        )


def check_cost(config: EngineConfig, *, accept_lossy: bool) -> None:
    """ConfigError where the codec was measured to miss its goal, and nobody said that this is accepted."""
    cost = cost_of(config.codec)
    if cost is not None and not accept_lossy:
        cheaper = ", ".join(sorted(CODECS.keys() - MISSED.keys(), key=lambda name: CODECS[name].bits_per_parameter))
        raise ConfigError(
            f"codec {config.codec} loses more than it saves: {cost}; use one of {cheaper}, the shortest first, or "
            "`--accept-lossy` begins the run with it"
        )


def _layout_of(settings: RunSettings) -> Layout:
    from moe.layout import layout

    if settings.checkpoint is not None:
        from moe.export import checkpoint_config

        return layout(
            checkpoint_config(Path(settings.checkpoint).expanduser()), settings.residency, settings.column_parts
        )
    from moe.presets import preset

    return layout(preset(str(settings.preset)), settings.residency, settings.column_parts)


def _check_trunk(settings: RunSettings) -> None:
    mode = settings.engine.get("inner", {}).get("trunk", WHOLE_TRUNK)
    if settings.checkpoint is None and mode != WHOLE_TRUNK:
        raise ConfigError(
            f"inner.trunk is {mode}, and the model begins with random weights, which nobody would train: begin with a "
            "checkpoint (`barnraise pretrain` makes one)"
        )


def _check_length(cut: Layout, settings: RunSettings) -> None:
    longest = int(cut.config_json["max_position_embeddings"])
    if settings.sequence_length > longest:
        raise ConfigError(f"sequence_length is {settings.sequence_length}, the model reads at most {longest} positions")
