"""Runs whose submissions have the size that a benchmark asks for, and workers' ways into them.

Decides a model's shape from a number of bytes: one layer, two experts, everything in fp32. Touches the folder it is
given.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coordinator.run.folder import RunFolder, init_run
from coordinator.settings import RunSettings
from coordinator.store.registry import Registry
from moe import presets
from moe.config import config_from_json
from moe.layout import Layout, layout, submission_specs
from protocol.codecs import codec_named
from protocol.joinlink import JoinLink
from protocol.specs import TensorSpec
from protocol.tensor_headers import payload_size

_VALUE_BYTES = 4
_TEXT = "def add(a, b):\n    return a + b\n\n\n"


def sized_run(folder: Path, payload_bytes: int, engine: Mapping[str, Any], codec: str = "fp32") -> RunFolder:
    """A new run in `folder`, whose leases of all columns have `payload_bytes` in fp32, to within a few percent."""
    data = folder.parent / f"{folder.name}-text"
    data.mkdir()
    for number in range(64):
        (data / f"{number}.py").write_text(f"# {number}\n" + _TEXT * 200)
    before = presets._SHAPES["tiny"]
    presets._SHAPES["tiny"] = _shape(before, payload_bytes // _VALUE_BYTES)
    try:
        settings = RunSettings(
            preset="tiny", data=str(data), port=0, sequence_length=32, codec=codec, heldout_limit=4,
            screening_sequences=64, engine=dict(engine),
        )  # fmt: skip
        return init_run(folder, settings, accept_unaudited=True)
    finally:
        presets._SHAPES["tiny"] = before


def _shape(tiny: presets._Shape, parameters: int) -> presets._Shape:
    """Hidden size such that half of the parameters are the trunk's, experts as wide as the rest wants."""
    hidden = next(size for size in range(8, 1 << 14, 8) if _trunk(tiny, size + 8) > parameters // 2)
    expert = max(8, (parameters - _trunk(tiny, hidden)) // (2 * 3 * hidden) // 8 * 8)
    return dataclasses.replace(
        tiny, hidden_size=hidden, heads=1, layers=1, experts=2, top_k=1, expert_size=expert, max_positions=64
    )


def _trunk(tiny: presets._Shape, hidden: int) -> int:
    return 4 * hidden * hidden + 2 * tiny.vocab_size * hidden


def layout_of(run: RunFolder) -> Layout:
    """What the run's model consists of."""
    return layout(config_from_json(run.model_json), run.settings().residency)


def submission_layout(run: RunFolder) -> tuple[TensorSpec, ...]:
    """Of a lease of all columns."""
    whole = layout_of(run)
    return tuple(submission_specs(whole, range(whole.columns)))


def submission_bytes(run: RunFolder) -> int:
    """Size of a submission for a lease of all columns."""
    return payload_size(submission_layout(run), codec_named(run.settings().codec))


def invited(run: RunFolder, port: int) -> str:
    """A join link for one worker."""
    registry = Registry.open(run.registry_path)
    invite = registry.create_invite(trusted=False, expires_at_s=time.time() + 3600.0)
    registry.close()
    return str(JoinLink(host="127.0.0.1", port=port, fingerprint=run.authority().fingerprint, invite=invite))
