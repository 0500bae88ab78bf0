"""What an operator sets when a run is made: one frozen model, validated once, kept as `settings.toml`.

Decides nothing about rounds itself: the `[engine]` table overrides fields of `coordinator.engine.config.EngineConfig`.
When each setting counts is in coordinator/setting_counts.py. Touches no file; `coordinator/run` reads and writes it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import tomlkit
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator

from aggregation.names import EXPECTED, RULES  # names alone: reading a file must not load torch
from coordinator.beginning import NESTED, USUAL_CODEC, begun
from coordinator.engine.changes import DERIVED, flat, settings_of
from coordinator.engine.config import EngineConfig, check_config
from protocol.admission import MOST_WORK_BITS
from protocol.codecs import CODECS
from protocol.errors import ConfigError
from protocol.hosts import WILDCARDS, address_text, canonical_host, dialable_host, split_port
from protocol.ids import RunId
from protocol.joinlink import Bootstrap
from protocol.misfits import misfits
from protocol.residency import FROZEN, Residency

DEFAULT_PORT = 7465
"""No service is registered there with IANA; the digits stand for nothing."""

Checked = TypeVar("Checked")
_ENGINE = TypeAdapter(EngineConfig)


MACHINE = frozenset(
    {
        "name",
        "host",
        "port",
        "advertised_hosts",
        "evaluation_batch",
        "evaluation_device",
        "executor_threads",
        "keep_checkpoints",
        "admission_work_bits",
        "most_per_range",
        "copies",
        "fallback_s",
        "archives",
        "watts",
        "p2p",
        "p2p_port",
        "p2p_through",
        "p2p_map_port",
        "p2p_relay_bytes_per_s",
    }
)
"""Settings that no lease, block or figure depends on."""


class RunSettings(BaseModel):
    """One run's settings. `preset` or `checkpoint` names the model that training starts from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(default="barnraise run", min_length=1, max_length=64)
    """What people see."""
    preset: str | None = None
    """Train this shape from scratch."""
    checkpoint: str | None = None
    """Train on from this Hugging Face folder on disk."""
    data: str = "stdlib"
    """A folder made by `barnraise data prepare`, or a source to prepare: file, folder, `stdlib`, `datasets:NAME`."""
    residency: Residency = FROZEN
    """What stands in for the expert columns that a worker does not hold: frozen copies, or nothing."""
    column_parts: int = Field(default=1, ge=1, le=256)
    """Parts that each expert's column is cut into, by groups of layers, where whole ones are too large for the machines
    of a run: each is leased, held and sent as a column of its own."""
    codec: str = USUAL_CODEC
    """What a submission is encoded in."""
    sequence_length: int = Field(default=128, ge=8, le=131_072)
    """Tokens a sequence."""
    line: str = Field(default="20/100", pattern=r"^[1-9]\d{0,5}/[1-9]\d{0,5}$")
    """Mbit/s up and down of a volunteer, as `init` assumes them where it works out how long leases are."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of the first weights."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every interface."""
    port: int = Field(default=DEFAULT_PORT, ge=0, le=65_535)
    """0 takes a free port at the first start and keeps it."""
    advertised_hosts: tuple[str, ...] = ()
    """Names and addresses by which workers reach this machine, with `:PORT` where a router forwards another port; the
    first goes first into join links."""
    heldout_limit: int = Field(default=128, ge=1)
    """Held-out sequences that a version is validated on."""
    screening_sequences: int = Field(default=64, ge=2)
    """Sequences that no lease names, drawn anew each round, that a submission's gain is measured on: so many where
    fewer do not decide, four times as many where these speak against it."""
    screening_share: float | None = Field(default=None, ge=0, le=0.1)
    """Share of the training sequences that the run keeps, in secret, to measure submissions on; 0, or none in a run
    that has begun: they are measured on the public held-out part. `init` makes none 0.01, where the data allow it."""
    evaluation_batch: int = Field(default=32, ge=1)
    """Sequences evaluated at a time, at most: on a CPU fewer where 256 MiB would not hold what passes of them."""
    evaluation_device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:\d+)?)$")
    """Where screening and validation compute their losses."""
    keep_checkpoints: int = Field(default=3, ge=1)
    """Newest exports that are kept in `checkpoints/`."""
    admission_work_bits: int = Field(default=0, ge=0, le=MOST_WORK_BITS)
    """Each key proves 2 to this power of hashes before it is enrolled: a price for many keys. 20 is a second or two
    of a laptop, 26 a minute; 0: none."""
    most_per_range: int = Field(default=0, ge=0)
    """Keys that may enrol from one range of addresses (IPv4 /24, IPv6 /48); 0: any number."""
    copies: int = Field(default=2, ge=0, le=1000)
    """Times that a block leaves this machine while workers share (`worker join --share`): the others take it from one
    another. Fewer spare the line here, more are passed on sooner. 0: everybody takes everything from here."""
    fallback_s: float = Field(default=30.0, ge=1.0, le=3600.0)
    """A worker to which nothing came for so long, from anybody, takes what it lacks from here."""
    archives: int = Field(default=2, ge=0, le=1000)
    """Workers that may keep whole versions (`worker join --archive`), momentum among them, by which the run could go on
    without this machine. Each fetches what changed of every version from here. 0: none."""
    watts: int = Field(default=300, ge=1, le=100_000)
    """What a volunteer's machine is reckoned to draw while it trains, for the estimate of energy on the page: nobody
    measures it. 300 is a desktop with one GPU, 65 a processor."""
    p2p: bool = False
    """Take part in a peer-to-peer network of the run's own (a process of some 350 MB): workers with `--p2p` find the
    run there when it moves. Join links then name this machine's node, and those of `p2p_through`."""
    p2p_port: int = Field(default=7467, ge=0, le=65_535)
    """Where that node listens, on `host`; 0: any port that is free."""
    p2p_through: tuple[str, ...] = ()
    """Other nodes of it, as `PEER@HOST:PORT`: on machines that stay where they are."""
    p2p_map_port: bool = False
    """Ask the router to forward that port (UPnP)."""
    p2p_relay_bytes_per_s: int = Field(default=0, ge=0)
    """With `p2p`: pass on so many bytes a second, at most, to and from workers that share and cannot be reached. What
    they give comes in here and goes out again. 0: no relay."""
    executor_threads: int = Field(default=1, ge=1)
    """torch threads for screening and aggregation."""
    sim_secret_from_seed: bool = False
    """For simulations: the secret behind placement and held-out draws follows from `seed`. Never for a real run."""
    engine: dict[str, Any] = Field(default_factory=dict)
    """Overrides of EngineConfig's fields, with tables `inner` and `screening`."""

    @field_validator("name", "checkpoint", "data", mode="before")
    @classmethod
    def _can_be_written(cls, value: object) -> object:
        """A file's name may be any bytes; settings.toml is UTF-8, and it is written after all the work."""
        if isinstance(value, str) and any(0xD800 <= ord(sign) < 0xE000 for sign in value):
            raise ValueError(f"{value!a} is not UTF-8: rename it, or make a link to it under another name")
        return value

    @field_validator("host")
    @classmethod
    def _host_is_one(cls, value: str) -> str:
        return _telling_pydantic(canonical_host, value)

    @field_validator("advertised_hosts")
    @classmethod
    def _advertised_can_be_dialled(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_telling_pydantic(_canonical_address, one) for one in value)

    @field_validator("p2p_through")
    @classmethod
    def _nodes_are_some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(_telling_pydantic(Bootstrap.parse, one)) for one in value)

    @field_validator("codec")
    @classmethod
    def _codec_is_known(cls, value: str) -> str:
        if value not in CODECS:
            raise ValueError(f"must be one of {', '.join(CODECS)}, got {value!r}")
        return value

    @field_validator("engine")
    @classmethod
    def _engine_is_known(cls, value: dict[str, Any], info: Any) -> dict[str, Any]:
        table = _without_none(value)
        check_engine(table, info.data.get("codec", USUAL_CODEC))
        return table

    @model_validator(mode="after")
    def _one_model(self) -> RunSettings:
        if (self.preset is None) == (self.checkpoint is None):
            raise ValueError("set exactly one of `preset` (a name) and `checkpoint` (a folder)")
        return self

    def engine_config(self, *, run_id: RunId, columns: int, train_sequences: int, min_columns: int = 1) -> EngineConfig:
        """The engine's configuration, with what only the model and the data tell; `min_columns` is the model's."""
        derived = {
            "run_id": run_id,
            "columns": columns,
            "train_sequences": train_sequences,
            "min_columns": min_columns,
            "codec": self.codec,
        }
        return _ENGINE.validate_python({**self.engine, **derived})

    def join_address(self, listening_port: int) -> tuple[str, int]:
        """The first of them."""
        return self.join_addresses(listening_port)[0]

    def join_addresses(self, listening_port: int) -> tuple[tuple[str, int], ...]:
        """Hosts and ports at which workers look for the run, the likeliest first."""
        own = "127.0.0.1" if self.host in WILDCARDS else self.host
        places = [split_port(one) for one in self.advertised_hosts] or [(own, None)]
        return tuple((canonical_host(host), port or listening_port) for host, port in places)

    def certificate_hosts(self) -> tuple[str, ...]:
        """Every name that the server's certificate holds for."""
        advertised = [canonical_host(split_port(one)[0]) for one in self.advertised_hosts]
        hosts = [*advertised, self.host, "localhost", "127.0.0.1", "::1"]
        return tuple(dict.fromkeys(host for host in hosts if host not in WILDCARDS))

    def to_toml(self) -> str:
        """As `settings.toml`; `from_toml` of it is equal."""
        return tomlkit.dumps(self.model_dump(mode="json", exclude_none=True))

    def as_begun(self) -> RunSettings:
        """The settings with which a run begins: where they are not set, rates that suit a checkpoint, and the audits
        without which strangers come to nothing."""
        return self.model_copy(update={"engine": begun(self.engine, goes_on=self.checkpoint is not None)})

    @property
    def fixed(self) -> dict[str, str]:
        """Key to JSON of what is fixed at `init` and none of the engine's."""
        plain = self.model_dump(mode="json", exclude={*MACHINE, "engine"})
        return {key: json.dumps(value) for key, value in plain.items()}

    def stated(self, config: EngineConfig) -> dict[str, Any]:
        """The engine's settings that the `[engine]` table names, by whole key; `config` is the run's."""
        derived = {name: getattr(config, name) for name in DERIVED if name not in RunSettings.model_fields}
        values = settings_of(self.engine_config(**derived))
        return {key: values[key] for key in flat(self.engine)}

    @classmethod
    def from_toml(cls, text: str, source: str) -> RunSettings:
        """Parse; `source` names the file in errors."""
        try:
            return cls.model_validate(tomllib.loads(text))
        except ValidationError as error:
            raise ConfigError(f"{source}: {describe(error)}") from error
        except (ValueError, RecursionError) as error:  # TOMLDecodeError, or a number that Python does not read
            raise ConfigError(f"{source} is not TOML: {error}") from error


def describe(error: ValidationError) -> str:
    """A validation error as one sentence a person can act on."""
    return "; ".join(f"{where or 'settings'}: {what}" for where, what in misfits(error))


def engine_overrides(assignments: Iterable[str]) -> dict[str, Any]:
    """The engine table that `KEY=VALUE` texts set: values as in TOML (or bare words), keys as `inner.learning_rate`.

    Whether there is such a setting, and such a value for it, is for `RunSettings` to say. Raises ConfigError.
    """
    table: dict[str, Any] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        *path, name = key.strip().split(".")
        if not equals or not name or len(path) > 1 or (path and path[0] not in NESTED):
            raise ConfigError(f"--set takes an engine setting, as inner.learning_rate=3e-3 or quorum=2, got {text!r}")
        inner = table.setdefault(path[0], {}) if path else table
        if not path and name in NESTED:
            raise ConfigError(f"--set {name}: name one of its settings, as {name}.{_first_field(NESTED[name])}=...")
        inner[name] = value_of(value.strip())
    return table


def value_of(text: str) -> Any:
    """What TOML makes of `text`; text that is no TOML value stands for itself."""
    try:
        found = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):  # no TOML, or a number of more digits than Python reads
        return text
    return found["value"] if found.keys() == {"value"} else text


def check_engine(table: Mapping[str, Any], codec: str = USUAL_CODEC) -> EngineConfig:
    """The configuration that an `[engine]` table gives, but for model and data; ValueError where it would not do."""
    _check_names(table)
    try:
        config = _ENGINE.validate_python({**table, "run_id": "run", "columns": 1, "train_sequences": 1, "codec": codec})
    except ValidationError as error:
        raise ValueError(describe(error)) from error
    for path, value in settings_of(config).items():
        if isinstance(value, str | bool | None):
            continue
        if not math.isfinite(value) or (value < 0 and path != "screening.min_heldout_gain"):
            raise ValueError(f"`{path}` must be a finite number of 0 or more, got {value}")
    for name in ("max_rounds", "replicas", "quorum", "min_workers"):
        if getattr(config, name) < 1:
            raise ValueError(f"`{name}` must be 1 or more, got {getattr(config, name)}")
    try:
        check_config(dataclasses.replace(config, train_sequences=sys.maxsize))
    except ConfigError as error:
        raise ValueError(str(error)) from error
    if config.rule not in RULES:
        raise ValueError(f"`rule` must be {EXPECTED}; got {config.rule!r}")
    return config


def _check_names(table: Mapping[str, Any]) -> None:
    known = {field.name for field in dataclasses.fields(EngineConfig)}
    for key in table:
        if key in DERIVED:
            raise ValueError(f"`{key}` follows from the model and the data and cannot be set")
        if key not in known:
            raise ValueError(f"unknown engine setting `{key}`; known are {', '.join(sorted(known - DERIVED))}")
    for name, kind in NESTED.items():
        inner = table.get(name, {})
        names = {field.name for field in dataclasses.fields(kind)}
        unknown = sorted(set(inner) - names) if isinstance(inner, Mapping) else []
        if unknown:
            raise ValueError(f"unknown setting `{name}.{unknown[0]}`; known are {', '.join(sorted(names))}")


def _canonical_address(text: str) -> str:
    """`HOST` or `HOST:PORT` in its one form."""
    host, port = split_port(text)
    canonical = dialable_host(host)
    return canonical if port is None else address_text(canonical, port)


def _telling_pydantic(check: Callable[[str], Checked], value: str) -> Checked:
    """What `check` makes of `value`, or its sentence as pydantic wants it."""
    try:
        return check(value)
    except ConfigError as error:
        raise ValueError(str(error)) from error


def _first_field(kind: type) -> str:
    return dataclasses.fields(kind)[0].name


def _without_none(table: Mapping[str, Any]) -> dict[str, Any]:
    """A setting of None is one that is not set: TOML has no word for it."""
    given = {key: value for key, value in table.items() if value is not None}
    return {key: _without_none(value) if isinstance(value, Mapping) else value for key, value in given.items()}
