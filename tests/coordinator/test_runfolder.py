"""A run folder: whole or not there, private, and the same again from the same seed where a simulation asks for it."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

from barnraise.cli.app import run as run_command
from coordinator.engine.events import RunCreated
from coordinator.engine.records import event_from_json
from coordinator.run import folder as runfolder
from coordinator.run.folder import RunFolder, init_run
from coordinator.run.verify import verify_run
from coordinator.settings import RunSettings
from coordinator.store.journal import Journal
from coordinator.store.versions import Versions
from protocol.errors import ConfigError
from tests.killing import every_kill, killed_at


def settings_for(data: Path, **changes: object) -> RunSettings:
    values: dict[str, object] = {
        "preset": "tiny",
        "data": str(data),
        "sequence_length": 32,
        "engine": {"inner": {"inner_steps": 1, "batch_sequences": 1}},
    }
    return RunSettings.model_validate(values | changes)


def test_secrets_are_readable_by_their_owner_only(run: RunFolder) -> None:
    secret = run.root / "secret"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o700
    for path in (*secret.iterdir(), run.root / "settings.toml", run.journal_path, run.registry_path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_the_journal_begins_with_the_runs_creation_and_version_0_is_whole(run: RunFolder) -> None:
    journal = Journal.open(run.journal_path)
    ((position, record),) = journal.read()
    created = event_from_json(record)
    journal.close()
    assert position == 1
    assert isinstance(created, RunCreated)
    assert created.config.columns == run.layout().columns
    versions = Versions(run.root / "versions", run.artifacts().blocks, run.layout())
    assert versions.manifest_digest(0) == created.base_manifest
    manifest = versions.manifest(created.base_manifest)
    assert set(versions.load_blocks(manifest)) == set(run.layout().blocks)
    assert manifest.run_id == run.run_id == created.config.run_id


def test_nothing_is_left_of_a_run_that_could_not_be_made(tmp_path: Path, text_folder: Path) -> None:
    with pytest.raises(ConfigError):
        init_run(tmp_path / "run", settings_for(text_folder, preset="no-such-preset"))
    too_much = settings_for(text_folder, engine={"inner": {"inner_steps": 10**5 // 2}})
    with pytest.raises(ConfigError, match="training sequences"):
        init_run(tmp_path / "run", too_much)
    assert list(tmp_path.iterdir()) == []


SOME, ALL = 9, 1
"""Every so many steps are a process's last; all of them take minutes."""


@pytest.mark.parametrize("stride", [SOME, pytest.param(ALL, marks=pytest.mark.soak)])
@pytest.mark.parametrize("place", ["new", "mount"])
def test_killed_between_any_two_files_there_is_no_run_and_the_next_init_makes_one(
    tmp_path: Path, run: RunFolder, place: str, stride: int
) -> None:
    settings, at = settings_for(run.dataset().folder), 0
    init_run(tmp_path / "first", settings)  # what is imported and cached for good is so before anything is counted

    def folder() -> Path:
        return tmp_path / str(at) / "run"

    def ready() -> None:
        folder().parent.mkdir()
        if place == "mount":
            (folder() / "lost+found").mkdir(parents=True)

    def look(step: int) -> None:
        nonlocal at
        if not (folder() / "run.json").exists():
            with pytest.raises(ConfigError, match=r"is not whole|is not a run folder"):
                RunFolder.open(folder())
            init_run(folder(), settings)
            assert [path.name for path in folder().parent.iterdir()] == ["run"], step
        made = RunFolder.open(folder())
        assert [problem for check in verify_run(made) for problem in check.problems] == []
        shutil.rmtree(folder().parent)
        at += 1
        ready()

    ready()
    assert every_kill(lambda: init_run(folder(), settings), look, stride=stride) > 40


def test_an_interrupted_init_is_told_and_gone_on_with_by_the_same_command(tmp_path: Path, run: RunFolder) -> None:
    folder = tmp_path / "mount"
    folder.mkdir()
    command = ["coordinator", "init", str(folder), "--if-missing", "--data", str(run.dataset().folder)]
    command += ["--preset", "tiny", "--sequence-length", "32", "--batch", "1"]
    assert killed_at(30, lambda: run_command(command))
    with pytest.raises(ConfigError, match="is not whole: making it was interrupted") as told:
        RunFolder.open(folder)
    assert "give the same command again" in str(told.value)
    assert run_command(command) == 0
    run_id = RunFolder.open(folder).run_id
    assert run_command(command) == 0
    assert RunFolder.open(folder).run_id == run_id


def test_two_inits_at_once_are_kept_apart(tmp_path: Path, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_for(run.dataset().folder)
    building = runfolder._build

    def meanwhile(*given: Any) -> None:
        with pytest.raises(ConfigError, match="another process is filling"):
            init_run(tmp_path / "new", settings)
        building(*given)

    monkeypatch.setattr(runfolder, "_build", meanwhile)
    init_run(tmp_path / "new", settings)
    assert RunFolder.open(tmp_path / "new")


def test_an_existing_folder_is_never_touched(tmp_path: Path, text_folder: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not lose me")
    with pytest.raises(ConfigError, match="not empty"):
        init_run(tmp_path / "mine", settings_for(text_folder))
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "do not lose me"
    with pytest.raises(ConfigError, match="not a run folder"):
        RunFolder.open(tmp_path / "mine")


def test_a_simulation_repeats_its_secret_and_a_real_run_does_not(tmp_path: Path, text_folder: Path) -> None:
    simulated = settings_for(text_folder, seed=5, sim_secret_from_seed=True)
    one, two = (init_run(tmp_path / name, simulated) for name in ("one", "two"))
    assert (one.draw_secret(), one.run_id) == (two.draw_secret(), two.run_id)
    real = init_run(tmp_path / "real", settings_for(text_folder, seed=5))
    assert real.draw_secret() != one.draw_secret()
    assert len(real.draw_secret()) == 32


def test_a_prepared_dataset_is_used_where_it_lies(tmp_path: Path, run: RunFolder, text_folder: Path) -> None:
    prepared = run.dataset().folder
    second = init_run(tmp_path / "second", settings_for(prepared))
    assert second.dataset().digest == run.dataset().digest
    assert not (second.root / "dataset").exists()


def test_a_dataset_that_changed_is_refused(run: RunFolder) -> None:
    facts = run.root / "run.json"
    facts.write_text(facts.read_text().replace(run.dataset().digest, "0" * 64))
    with pytest.raises(ConfigError, match="the run began with"):
        run.dataset()
