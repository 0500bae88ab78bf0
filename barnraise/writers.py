"""A model by what a person names: a checkpoint's folder, or a run's, whose present version it is then.

Decides which of them a folder is, and what is said where it is none. Reads only; a run may be served meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protocol.errors import ConfigError

if TYPE_CHECKING:
    from moe.layout import Layout
    from moe.sampling import Writer
    from protocol.ids import BlockId

Told = Callable[[str], object]


def require_model(folder: Path) -> None:
    """ConfigError unless `folder` is one that `writer_of` can open, as far as a look at it tells."""
    if not any((folder / name).is_file() for name in ("config.json", "run.json")):
        raise ConfigError(
            f"{folder} holds no model: there is neither a config.json in it (a checkpoint) nor a run.json (a run)"
        )


def writer_of(folder: Path, *, dtype: str, tokenizer: Path | None, memory_bytes: int | None, told: Told) -> Writer:
    """What writes text with the model in `folder`; ConfigError where it cannot be opened.

    `memory_bytes`: for experts that stay in memory; None is half of what is free.
    """
    from moe.sampling import writer_of_blocks, writer_of_checkpoint

    require_model(folder)
    kept_bytes = half_of_free() if memory_bytes is None else memory_bytes
    if (folder / "config.json").is_file():
        return writer_of_checkpoint(folder, dtype=dtype, tokenizer=tokenizer, kept_bytes=kept_bytes, told=told)
    from coordinator.run.folder import RunFolder

    run = RunFolder.open(folder)
    cut, blocks = _present_version(run, told)
    companions = run.companions(run.dataset())
    return writer_of_blocks(
        cut, blocks, companions, folder, dtype=dtype, tokenizer=tokenizer, kept_bytes=kept_bytes, told=told
    )


def half_of_free() -> int:
    """Bytes of main memory that experts may take where nobody said: others use this machine, too."""
    import psutil

    return int(psutil.virtual_memory().available) // 2


def _present_version(run: Any, told: Told) -> tuple[Layout, Mapping[BlockId, Mapping[str, Any]]]:
    from coordinator.store.versions import Versions
    from moe.on_demand import as_frozen

    layout = run.layout()
    versions = Versions(run.root / "versions", run.artifacts().blocks, layout)
    version = run.published_version()
    digest = versions.manifest_digest(version)
    if digest is None:
        raise ConfigError(f"{run.root}: version {version} is not there: `barnraise coordinator verify` says what is")
    blocks: dict[BlockId, Mapping[str, Any]] = {}
    for block, ref in versions.manifest(digest).blocks.items():
        told(f"checking blocks: {len(blocks)} of {len(layout.blocks)}")
        blocks[block] = versions.load_block(block, ref)
    return as_frozen(layout, blocks)
