"""A run has text of its own to measure submissions on, from `init` on; one that began without keeps what it has."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path

import numpy as np
import pytest

from coordinator.datasets import Dataset
from coordinator.edge.server import CoordinatorServer
from coordinator.run.backup import back_up, restore
from coordinator.run.carving import SCREENING_FOLDER
from coordinator.run.clock import Clocks
from coordinator.run.folder import RunFolder, init_run
from coordinator.run.opened import OpenedRun
from coordinator.settings import RunSettings
from protocol.errors import ConfigError

LENGTH = 32


def settings_of(text: Path, **changes: object) -> RunSettings:
    values = {"preset": "tiny", "data": str(text), "sequence_length": LENGTH, "screening_sequences": 8, "port": 0}
    return RunSettings.model_validate(values | changes)


def without_split(run: RunFolder) -> None:
    """As a run that began before there was a choice."""
    path = run.root / "settings.toml"
    text, count = re.subn(r"screening_share = .*\n", "", path.read_text())
    assert count == 1
    path.write_text(text)


def test_init_keeps_a_share_that_leases_are_not_given(tmp_path: Path, text_folder: Path) -> None:
    run = init_run(tmp_path / "run", settings_of(text_folder))
    assert run.settings().screening_share == 0.01
    own, whole = run.dataset(), Dataset.open(run.dataset_path)
    kept = own.screening_batch(1, 10**6, LENGTH)
    assert len(kept) >= 4 * 8
    assert own.train_sequences(LENGTH) + len(kept) == whole.train_sequences(LENGTH)
    assert run.draw_secret().hex() not in (run.root / "run.json").read_text()


@pytest.mark.parametrize(("share", "notes"), [(None, "too little text for a secret split"), (0.0, "is 0")])
def test_a_run_without_a_split_is_told_of(tmp_path: Path, text_folder: Path, share: float | None, notes: str) -> None:
    many = {} if share == 0.0 else {"screening_sequences": 10**5}
    said: list[str] = []
    run = init_run(tmp_path / "run", settings_of(text_folder, screening_share=share, **many), note=said.append)
    assert run.settings().screening_share == 0.0
    assert [sentence for sentence in said if notes in sentence and "held-out part" in sentence]
    assert not run.dataset().has_secret_split


def test_a_share_that_the_text_cannot_give_is_refused_before_anything_is_made(
    tmp_path: Path, text_folder: Path
) -> None:
    with pytest.raises(ConfigError, match=r"screening_share is 0\.02, and a tenth"):
        init_run(tmp_path / "run", settings_of(text_folder, screening_share=0.02, screening_sequences=10**5))
    assert not (tmp_path / "run").exists()


async def test_a_run_that_began_without_one_goes_on_with_the_public_part(run: RunFolder) -> None:
    without_split(run)
    record = json.loads((run.root / "run.json").read_text())
    assert "screening_text_digest" not in record
    dataset = run.dataset()
    assert not dataset.has_secret_split
    assert np.array_equal(dataset.screening_batch(3, 4, LENGTH, 2), dataset.heldout_batch(3, 4, LENGTH))


async def test_status_says_where_submissions_are_measured(run: RunFolder, tmp_path: Path, text_folder: Path) -> None:
    public = init_run(tmp_path / "public", settings_of(text_folder, screening_share=0.0))
    for folder, expected in ((run, False), (public, True)):
        server = CoordinatorServer(folder)
        await server.start()
        try:
            assert server.summary().screened_in_public is expected
        finally:
            await server.stop(0.0)


def test_the_share_cannot_be_edited_afterwards(run: RunFolder) -> None:
    path = run.root / "settings.toml"
    path.write_text(re.sub(r"screening_share = .*", "screening_share = 0.05", path.read_text()))
    with pytest.raises(ConfigError, match=r"`screening_share` is 0\.05 there and 0\.01 in the journal"):
        OpenedRun.open(run, Clocks())


def test_text_that_was_never_published_is_private_and_backed_up(tmp_path: Path, text_folder: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("".join(f"never published {n}\n" for n in range(3000)))
    run = init_run(tmp_path / "run", settings_of(text_folder), screening_text=str(own))
    for path in (run.root / SCREENING_FOLDER).rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    back_up(run, tmp_path / "backup")
    restore(tmp_path / "backup", tmp_path / "again")
    for folder in (run, RunFolder.open(tmp_path / "again")):
        rows = folder.dataset().screening_batch(1, 10**6, LENGTH)
        assert sum(b"never published" in row.astype(np.uint8).tobytes() for row in rows) > 500


def test_text_for_screening_needs_a_split(tmp_path: Path, text_folder: Path) -> None:
    with pytest.raises(ConfigError, match="--screening-text"):
        init_run(tmp_path / "run", settings_of(text_folder, screening_share=0.0), screening_text=str(text_folder))
