"""A run on disk: how it is made, and where everything in it lies.

    settings.toml         what the operator set
    run.json              run id, dataset digest and place: public facts that never change
    secret/               CA, leaf, keys and the secret of all draws; folder 0700, files 0600
    journal.sqlite        what happened (coordinator/journal.py), and beside it the mark of its newest commit
    registry.sqlite       invites and members (coordinator/invites.py)
    artifacts/            blocks, payloads, partial uploads
    versions/             which version has which manifest
    dataset/              only where the dataset was prepared for this run
    checkpoints/          Hugging Face folders
    events.jsonl          one line for each event and command, for people and tools; never read back
    endpoint.json         where the coordinator listens, or did when it last ran (coordinator/reaching.py)
    coordinator.lock      held by the process that serves the run

Always: a run folder is there whole or not at all; it is built under a temporary name beside its place.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordinator.artifacts import ArtifactStore
from coordinator.engine.config import check_config
from coordinator.engine.events import RunCreated
from coordinator.engine.records import event_to_json
from coordinator.engine.version import ENGINE_VERSION
from coordinator.invites import Registry
from coordinator.journal import Journal
from coordinator.settings import RunSettings
from protocol.errors import ConfigError
from protocol.identity import PrivateIdentity
from protocol.ids import BlockId, RoundNumber, RunId, Version
from protocol.manifest import Manifest
from protocol.private_files import read_private, write_private
from protocol.tls import CertificateAuthority

if TYPE_CHECKING:
    from torch import Tensor

    from coordinator.datasets import Dataset
    from moe.layout import Layout

SECRET_BYTES = 32
FIRST_VERSION = Version(0)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """An existing run folder."""

    root: Path

    @classmethod
    def open(cls, root: Path) -> RunFolder:
        """The run in `root`; ConfigError when there is none."""
        if not (root / "settings.toml").is_file() or not (root / "run.json").is_file():
            raise ConfigError(f"{root} is not a run folder; `barnraise coordinator init` makes one")
        return cls(root.resolve())

    def settings(self) -> RunSettings:
        """What the operator set."""
        path = self.root / "settings.toml"
        return RunSettings.from_toml(path.read_text("utf-8"), str(path))

    @property
    def run_id(self) -> RunId:
        """The run's name on the wire."""
        return RunId(str(self._facts()["run_id"]))

    @property
    def model_json(self) -> dict[str, Any]:
        """The closed model configuration."""
        model: dict[str, Any] = self._facts()["model"]
        return model

    @property
    def dataset_path(self) -> Path:
        """Where the run's dataset lies."""
        return self.root / str(self._facts()["dataset"])

    @property
    def journal_path(self) -> Path:
        """The journal."""
        return self.root / "journal.sqlite"

    @property
    def registry_path(self) -> Path:
        """Invites and members."""
        return self.root / "registry.sqlite"

    @property
    def checkpoints(self) -> Path:
        """Hugging Face folders, newest last."""
        return self.root / "checkpoints"

    @property
    def events_path(self) -> Path:
        """The readable log of events and commands."""
        return self.root / "events.jsonl"

    @property
    def endpoint_path(self) -> Path:
        """Where the coordinator listens, or last did."""
        return self.root / "endpoint.json"

    def authority(self) -> CertificateAuthority:
        """The run's own CA."""
        return CertificateAuthority.load(self.root / "secret")

    def leaf(self) -> tuple[bytes, bytes]:
        """The server's certificate chain and key, PEM."""
        secret = self.root / "secret"
        return read_private(secret / "leaf.pem"), read_private(secret / "leaf.key")

    def manifest_identity(self) -> PrivateIdentity:
        """The key that signs manifests."""
        return PrivateIdentity.load(self.root / "secret" / "manifest.key")

    def operator_identity(self) -> PrivateIdentity:
        """The operator's key."""
        return PrivateIdentity.load(self.root / "secret" / "operator.key")

    def draw_secret(self) -> bytes:
        """What all secret draws are made from."""
        return read_private(self.root / "secret" / "draws.secret")

    def artifacts(self) -> ArtifactStore:
        """Blocks, payloads, uploads."""
        return ArtifactStore(self.root / "artifacts")

    def registry(self) -> Registry:
        """Invites and members."""
        return Registry.open(self.registry_path)

    def published_version(self) -> int:
        """The newest version that the journal has published: what was only written is not the run's."""
        from coordinator.pump import load_engine

        journal = Journal.open(self.journal_path, writable=False)
        try:
            return int(load_engine(journal, self.draw_secret())[0].state.version)
        finally:
            journal.close()

    def layout(self) -> Layout:
        """How the model is cut."""
        from moe.config import config_from_json
        from moe.layout import layout

        return layout(config_from_json(self.model_json), self.settings().residency)

    def dataset(self) -> Dataset:
        """The run's data, checked to be what the run began with."""
        from coordinator.datasets import Dataset

        dataset = Dataset.open(self.dataset_path)
        expected = self._facts()["dataset_digest"]
        if dataset.digest != expected:
            raise ConfigError(f"{self.dataset_path} has digest {dataset.digest}, the run began with {expected}")
        return dataset

    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads((self.root / "run.json").read_bytes())
        return facts


def init_run(folder: Path, settings: RunSettings) -> RunFolder:
    """Make a run: keys, data, version 0, and the journal's first event."""
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty; a run begins in a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.new")
    building.mkdir(mode=0o700)
    try:
        _build(building, folder, settings)
        if folder.exists():
            folder.rmdir()
        building.rename(folder)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return RunFolder.open(folder)


def _build(root: Path, final: Path, settings: RunSettings) -> None:
    run_id = _write_secrets(root, settings)
    dataset_path, dataset = _dataset(root, final, settings)
    layout, blocks = _first_model(settings, dataset)
    facts = {
        "run_id": run_id,
        "dataset": str(dataset_path),
        "dataset_digest": dataset.digest,
        "model": dict(layout.config_json),
    }
    write_private(root / "run.json", json.dumps(facts, indent=2).encode())
    write_private(root / "settings.toml", settings.to_toml().encode())
    manifest = _write_first_version(RunFolder(root), layout, blocks, run_id, settings)
    train_sequences = dataset.train_sequences(settings.sequence_length)
    if train_sequences < 1 or len(dataset.heldout_all(settings.sequence_length, 1)) < 1:
        raise ConfigError(f"{dataset_path} is too small for sequences of {settings.sequence_length} tokens")
    config = settings.engine_config(
        run_id=run_id, columns=layout.columns, train_sequences=train_sequences, min_columns=layout.min_columns
    )
    check_config(config)
    created = RunCreated(at_s=time.time(), engine_version=ENGINE_VERSION, config=config, base_manifest=manifest)
    journal = Journal.create(root / "journal.sqlite", engine_version=ENGINE_VERSION)
    journal.append([event_to_json(created)])
    journal.close()
    Registry.open(root / "registry.sqlite").close()
    (root / "checkpoints").mkdir()


def _write_secrets(root: Path, settings: RunSettings) -> RunId:
    secret = root / "secret"
    secret.mkdir(mode=0o700)
    if settings.sim_secret_from_seed:
        seed = f"barnraise-simulation-{settings.seed}".encode()
        draws, run_id = hashlib.sha256(seed).digest(), RunId(f"sim-{hashlib.sha256(seed + b'-id').hexdigest()[:12]}")
    else:
        draws, run_id = secrets.token_bytes(SECRET_BYTES), RunId(f"run-{secrets.token_hex(6)}")
    write_private(secret / "draws.secret", draws)
    authority = CertificateAuthority.create(run_id)
    authority.save(secret)
    leaf = authority.issue_leaf(settings.certificate_hosts())
    write_private(secret / "leaf.pem", leaf.cert_pem)
    write_private(secret / "leaf.key", leaf.key_pem)
    PrivateIdentity.generate().save(secret / "manifest.key")
    PrivateIdentity.generate().save(secret / "operator.key")
    return run_id


def _dataset(root: Path, final: Path, settings: RunSettings) -> tuple[Path, Dataset]:
    """The prepared dataset that `data` names, or the one that is prepared from it; and its place after the rename."""
    from coordinator.datasets import Dataset, is_prepared, prepare

    if is_prepared(settings.data):
        given = Path(settings.data).expanduser()
        return given.resolve(), Dataset.open(given)
    prepare([settings.data], root / "dataset")
    return Path("dataset"), Dataset.open(root / "dataset")


def _first_model(settings: RunSettings, dataset: Dataset) -> tuple[Layout, dict[BlockId, dict[str, Tensor]]]:
    from moe.layout import layout

    if settings.checkpoint is not None:
        from moe.export import import_checkpoint

        config, blocks = import_checkpoint(Path(settings.checkpoint).expanduser(), settings.residency)
        cut = layout(config, settings.residency)
    else:
        from moe.full import initial_blocks
        from moe.presets import preset

        config = preset(str(settings.preset))
        cut = layout(config, settings.residency)
        blocks = initial_blocks(config, cut, settings.seed)
    vocab_size = int(cut.config_json["vocab_size"])
    if dataset.vocab_size > vocab_size:
        raise ConfigError(
            f"the dataset's tokenizer has {dataset.vocab_size} tokens, the model only {vocab_size}; "
            "prepare the data with the model's own tokenizer, or choose another model"
        )
    longest = int(cut.config_json["max_position_embeddings"])
    if settings.sequence_length > longest:
        raise ConfigError(f"sequence_length is {settings.sequence_length}, the model reads at most {longest} positions")
    return cut, blocks


def _write_first_version(
    run: RunFolder, layout: Layout, blocks: dict[BlockId, dict[str, Tensor]], run_id: RunId, settings: RunSettings
) -> Any:
    from coordinator.versions import Versions

    versions = Versions(run.root / "versions", run.artifacts(), layout)
    manifest = Manifest(
        run_id=run_id,
        version=FIRST_VERSION,
        parent_version=None,
        round=RoundNumber(0),
        created_at_s=time.time(),
        model=dict(layout.config_json),
        residency=settings.residency,
        blocks={block: versions.put_block(tensors) for block, tensors in blocks.items()},
        momenta={},
        val_loss=None,
        tokens_trained=0,
    )
    return versions.publish(manifest, "init")
