"""A run on disk: how it is made, and where everything in it lies.

    settings.toml         what the operator set
    run.json              run id, dataset digest and place: public facts that never change
    secret/               CA, leaf, keys and the secret of all draws; folder 0700, files 0600
    journal.sqlite        what happened (coordinator/store/journal.py), and beside it the mark of its newest commit
    registry.sqlite       invites and members (coordinator/store/registry.py)
    audit.sqlite          every judgement with its figures (coordinator/store/audit_log.py), for the operator
    credit.sqlite         every lease that was credited (coordinator/store/credit_ledger.py)
    artifacts/            blocks, payloads, partial uploads
    versions/             which version has which manifest
    dataset/              only where the dataset was prepared for this run
    screening/            only where the operator gave text that was never published: as private as secret/
    tokenizer/            tokenizer, chat template and generation settings: what every export carries
    checkpoints/          Hugging Face folders
    log/                  what its coordinator said, the oldest thrown away (coordinator/run/run_log.py)
    events.jsonl          one line for each event and command, for people and tools; never read back
    endpoint.json         where it listens, or last did; record.json, sharers.json: how workers find it elsewhere
    control/              the socket for the operator's commands, while it is served; folder 0700
    coordinator.lock      held by the process that serves the run

Always: a run folder is there whole or not at all (protocol/folders.py); `run.json` is moved in last, and a
folder without it is not a run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordinator.engine.arithmetic import caution
from coordinator.engine.events import RunCreated
from coordinator.engine.records import event_to_json
from coordinator.engine.version import ENGINE_VERSION
from coordinator.run.beginning import check_beginning, check_cost, check_pair, check_vouching, planned_engine
from coordinator.run.carving import first_data, own_data
from coordinator.run.lease_length import worked_out
from coordinator.run.secret_files import write_secrets
from coordinator.settings import RunSettings, check_engine
from coordinator.settings_reference import commented
from coordinator.store.artifacts import ArtifactStore
from coordinator.store.journal import Journal
from coordinator.store.registry import Registry
from protocol.errors import ConfigError
from protocol.folders import Kind, filled_whole, is_interrupted, require_fillable
from protocol.identity import PrivateIdentity
from protocol.ids import BlockId, RunId
from protocol.private_files import read_private, write_private
from protocol.tls import CertificateAuthority

if TYPE_CHECKING:
    from torch import Tensor

    from coordinator.datasets import Dataset
    from moe.layout import Layout
    from protocol.specs import Spanned

RUN_KIND = Kind(completed_by="run.json", private=True)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """An existing run folder."""

    root: Path

    @classmethod
    def open(cls, root: Path) -> RunFolder:
        """The run in `root`; ConfigError when there is none."""
        if is_interrupted(root, RUN_KIND):
            raise ConfigError(
                f"{root} is not whole: making it was interrupted, or is not done yet. Wait for it, or give the same "
                "command again (`barnraise coordinator init`, or restore): it clears this away and begins anew"
            )
        if not (root / "settings.toml").is_file() or not (root / RUN_KIND.completed_by).is_file():
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
    def audit_path(self) -> Path:
        """Every judgement with its figures."""
        return self.root / "audit.sqlite"

    @property
    def log_path(self) -> Path:
        """What its coordinator said."""
        return self.root / "log"

    @property
    def credit_path(self) -> Path:
        """Every lease that was credited."""
        return self.root / "credit.sqlite"

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

    @property
    def export_dtype(self) -> str:
        """What exports are kept in unless told otherwise: the type of the checkpoint that the run began with."""
        return str(self._facts().get("dtype", "fp32"))

    def companions(self, dataset: Dataset) -> dict[str, bytes]:
        """What stands beside the weights in every export; the data's own where the run kept nothing."""
        from moe.companions import COMPANIONS_FOLDER, read_companions

        return {**dataset.companions, **read_companions(self.root / COMPANIONS_FOLDER)}

    def artifacts(self) -> ArtifactStore:
        """Blocks, payloads, uploads."""
        return ArtifactStore(self.root / "artifacts")

    def registry(self) -> Registry:
        """Invites and members."""
        return Registry.open(self.registry_path)

    def published_version(self) -> int:
        """The newest version that the journal has published: what was only written is not the run's."""
        from coordinator.run.pump import load_engine

        journal = Journal.open(self.journal_path, writable=False)
        try:
            return int(load_engine(journal, self.draw_secret(), only_read=True)[0].state.version)
        finally:
            journal.close()

    def layout(self) -> Layout:
        """How the model is cut."""
        from moe.config import config_from_json
        from moe.layout import layout

        return layout(config_from_json(self.model_json), (said := self.settings()).residency, said.column_parts)

    def dataset(self) -> Dataset:
        """The run's data, checked to be what the run began with; what screening has for itself is carved out."""
        facts = self._facts()
        return own_data(
            self.root,
            self.settings(),
            facts["dataset"],
            facts["dataset_digest"],
            facts.get("screening_text_digest"),
            secret=self.draw_secret,
        )

    def fixed_settings(self, settings: RunSettings) -> dict[str, str]:
        """Key to JSON of what is fixed at `init`, with the data's digest, which `run.json` keeps."""
        return {**settings.fixed, "dataset_digest": json.dumps(self._facts()["dataset_digest"])}

    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads((self.root / "run.json").read_bytes())
        return facts


def init_run(
    folder: Path,
    settings: RunSettings,
    *,
    screening_text: str | None = None,
    founders: int = 0,
    accept_unaudited: bool = False,
    accept_lossy: bool = False,
    note: Callable[[str], None] = lambda _: None,
    progress: Callable[[int, int], None] | None = None,
    told: Callable[[str], object] = lambda _: None,
) -> RunFolder:
    """Make a run in a new or an empty folder: keys, data, version 0, and the journal's first event.

    One that begins with a checkpoint has gentler rates (`GOING_ON`) than the recipe's, where `settings` name none; an
    open one has audits (`OPEN_AUDITS`). ConfigError where strangers could join and nobody would vouch for them: no
    audits, none of the `founders` who are to be invited at once, and nobody who said `accept_unaudited`; and where the
    codec was measured to cost too much (codec_rules.py), unless `accept_lossy`.
    `screening_text` names text for screening alone, beside what is carved out of the data; ConfigError where nothing
    is. `note` gets sentences that the operator should see; `progress` documents and tokens while text is prepared;
    `told` how far the model's first version is.
    """
    way_out = "a run begins in a new or an empty folder"
    require_fillable(folder, RUN_KIND, way_out=way_out)
    settings = settings.as_begun()
    engine = check_engine(settings.engine, settings.codec)
    check_vouching(engine, founders=founders, accept_unaudited=accept_unaudited)
    check_cost(engine, accept_lossy=accept_lossy)
    if (said := caution(engine)) is not None:
        note(said)
    check_beginning(settings)
    with filled_whole(folder, RUN_KIND, way_out=way_out) as building:
        _build(building, settings, screening_text, note, progress, told)
    return RunFolder.open(folder)


def _build(
    root: Path,
    settings: RunSettings,
    screening_text: str | None,
    note: Callable[[str], None],
    progress: Callable[[int, int], None] | None,
    told: Callable[[str], object],
) -> None:
    from coordinator.store.versions import Versions, frozen_columns
    from coordinator.work.publishing import first_version

    run_id = write_secrets(root, settings)
    data = first_data(
        root, settings, screening_text, secret=RunFolder(root).draw_secret(), note=note, progress=progress
    )
    settings = settings.model_copy(update={"screening_share": data.share})
    layout, blocks, dtype = _first_model(root, settings, data.dataset, note, told)
    settings = worked_out(settings, layout, data.dataset.train_sequences(settings.sequence_length), note)
    config = planned_engine(settings, layout, data.dataset, run_id)
    facts = {"run_id": run_id, **data.facts, "model": dict(layout.config_json), "dtype": dtype}
    write_private(root / "run.json", json.dumps(facts, indent=2).encode())
    write_private(root / "settings.toml", commented(settings.to_toml()).encode())
    run = RunFolder(root)
    versions = Versions(root / "versions", run.artifacts().blocks, layout)
    manifest = first_version(
        versions,
        layout,
        blocks,
        run_id,
        config.down,
        created_at_s=time.time(),
        told=lambda done, of: told(f"encoding expert columns for those who do not hold them: {done} of {of}"),
    )
    created = RunCreated(
        at_s=0.0,
        engine_version=ENGINE_VERSION,
        config=config,
        base_manifest=manifest,
        wall_s=time.time(),
        settings=run.fixed_settings(settings),
        frozen=frozen_columns(versions.manifest(manifest)),
    )
    journal = Journal.create(root / "journal.sqlite", engine_version=ENGINE_VERSION)
    journal.append([event_to_json(created)])
    journal.close()
    Registry.open(root / "registry.sqlite").close()
    (root / "checkpoints").mkdir()


def _first_model(
    root: Path,
    settings: RunSettings,
    dataset: Dataset,
    note: Callable[[str], None],
    told: Callable[[str], object],
) -> tuple[Layout, Iterable[tuple[BlockId, Mapping[str, Tensor | Spanned]]], str]:
    """The model that the run begins with, and what its exports are kept in; its companions are kept in the folder.

    Its blocks are made, or read, one at a time when they are asked for.
    """
    from moe.companions import COMPANIONS_FOLDER, companions_of, write_companions
    from moe.export import checkpoint_blocks, inspect_checkpoint
    from moe.full import each_initial_block
    from moe.layout import layout
    from moe.presets import preset
    from moe.streams import summed_up

    begun = None if settings.checkpoint is None else Path(settings.checkpoint).expanduser()
    found = None if begun is None else inspect_checkpoint(begun)
    config = preset(str(settings.preset)) if found is None else found.config
    cut = layout(config, settings.residency, settings.column_parts)
    doubt = check_pair(cut, dataset, settings)
    remarks = (*(cut.family.remarks(cut.config_json) if found is None else found.remarks), doubt)
    for sentence in filter(None, remarks):
        note(sentence)
    write_companions(companions_of(begun, dataset.companions), root / COMPANIONS_FOLDER)
    if begun is None or found is None:
        return cut, each_initial_block(config, cut, settings.seed), "fp32"
    return cut, checkpoint_blocks(found, cut, summed_up(found.weights.payload_bytes, told)), found.dtype
