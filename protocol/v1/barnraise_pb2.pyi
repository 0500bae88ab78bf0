from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Capability(_message.Message):
    __slots__ = ("device", "device_name", "memory_bytes", "max_columns", "tokens_per_s", "software", "measures")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_NAME_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_COLUMNS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    MEASURES_FIELD_NUMBER: _ClassVar[int]
    device: str
    device_name: str
    memory_bytes: int
    max_columns: int
    tokens_per_s: float
    software: str
    measures: bool
    def __init__(self, device: _Optional[str] = ..., device_name: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., max_columns: _Optional[int] = ..., tokens_per_s: _Optional[float] = ..., software: _Optional[str] = ..., measures: _Optional[bool] = ...) -> None: ...

class EnrolRequest(_message.Message):
    __slots__ = ("protocol_version", "public_key", "invite", "name", "capability", "work", "sibling_of", "sibling_signature")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    INVITE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CAPABILITY_FIELD_NUMBER: _ClassVar[int]
    WORK_FIELD_NUMBER: _ClassVar[int]
    SIBLING_OF_FIELD_NUMBER: _ClassVar[int]
    SIBLING_SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    public_key: bytes
    invite: str
    name: str
    capability: Capability
    work: bytes
    sibling_of: bytes
    sibling_signature: bytes
    def __init__(self, protocol_version: _Optional[int] = ..., public_key: _Optional[bytes] = ..., invite: _Optional[str] = ..., name: _Optional[str] = ..., capability: _Optional[_Union[Capability, _Mapping]] = ..., work: _Optional[bytes] = ..., sibling_of: _Optional[bytes] = ..., sibling_signature: _Optional[bytes] = ...) -> None: ...

class EnrolReply(_message.Message):
    __slots__ = ("worker_id", "run_id", "manifest_public_key", "manifest_key_vouch", "trusted", "work_bits")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_KEY_VOUCH_FIELD_NUMBER: _ClassVar[int]
    TRUSTED_FIELD_NUMBER: _ClassVar[int]
    WORK_BITS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    run_id: str
    manifest_public_key: bytes
    manifest_key_vouch: bytes
    trusted: bool
    work_bits: int
    def __init__(self, worker_id: _Optional[str] = ..., run_id: _Optional[str] = ..., manifest_public_key: _Optional[bytes] = ..., manifest_key_vouch: _Optional[bytes] = ..., trusted: _Optional[bool] = ..., work_bits: _Optional[int] = ...) -> None: ...

class OpenSessionRequest(_message.Message):
    __slots__ = ("protocol_version", "public_key", "nonce", "capability", "team")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    CAPABILITY_FIELD_NUMBER: _ClassVar[int]
    TEAM_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    public_key: bytes
    nonce: bytes
    capability: Capability
    team: str
    def __init__(self, protocol_version: _Optional[int] = ..., public_key: _Optional[bytes] = ..., nonce: _Optional[bytes] = ..., capability: _Optional[_Union[Capability, _Mapping]] = ..., team: _Optional[str] = ...) -> None: ...

class OpenSessionReply(_message.Message):
    __slots__ = ("session_id", "heartbeat_interval_s", "run", "lease_length", "data_licence", "protocol_version", "record", "epoch")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_INTERVAL_S_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    LEASE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    DATA_LICENCE_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    session_id: bytes
    heartbeat_interval_s: float
    run: RunDescription
    lease_length: str
    data_licence: str
    protocol_version: int
    record: bytes
    epoch: int
    def __init__(self, session_id: _Optional[bytes] = ..., heartbeat_interval_s: _Optional[float] = ..., run: _Optional[_Union[RunDescription, _Mapping]] = ..., lease_length: _Optional[str] = ..., data_licence: _Optional[str] = ..., protocol_version: _Optional[int] = ..., record: _Optional[bytes] = ..., epoch: _Optional[int] = ...) -> None: ...

class RunDescription(_message.Message):
    __slots__ = ("run_id", "name", "model_json", "residency", "codec", "sequence_length", "dataset_digest", "max_block_bytes", "frozen_codec", "optimizer", "masters", "moments", "frozen_dtype", "trunk", "lora_rank", "column_parts")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_JSON_FIELD_NUMBER: _ClassVar[int]
    RESIDENCY_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    DATASET_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MAX_BLOCK_BYTES_FIELD_NUMBER: _ClassVar[int]
    FROZEN_CODEC_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    MASTERS_FIELD_NUMBER: _ClassVar[int]
    MOMENTS_FIELD_NUMBER: _ClassVar[int]
    FROZEN_DTYPE_FIELD_NUMBER: _ClassVar[int]
    TRUNK_FIELD_NUMBER: _ClassVar[int]
    LORA_RANK_FIELD_NUMBER: _ClassVar[int]
    COLUMN_PARTS_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    name: str
    model_json: str
    residency: str
    codec: str
    sequence_length: int
    dataset_digest: str
    max_block_bytes: int
    frozen_codec: str
    optimizer: str
    masters: str
    moments: str
    frozen_dtype: str
    trunk: str
    lora_rank: int
    column_parts: int
    def __init__(self, run_id: _Optional[str] = ..., name: _Optional[str] = ..., model_json: _Optional[str] = ..., residency: _Optional[str] = ..., codec: _Optional[str] = ..., sequence_length: _Optional[int] = ..., dataset_digest: _Optional[str] = ..., max_block_bytes: _Optional[int] = ..., frozen_codec: _Optional[str] = ..., optimizer: _Optional[str] = ..., masters: _Optional[str] = ..., moments: _Optional[str] = ..., frozen_dtype: _Optional[str] = ..., trunk: _Optional[str] = ..., lora_rank: _Optional[int] = ..., column_parts: _Optional[int] = ...) -> None: ...

class DataRange(_message.Message):
    __slots__ = ("seed", "start", "count")
    SEED_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    seed: int
    start: int
    count: int
    def __init__(self, seed: _Optional[int] = ..., start: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

class Recipe(_message.Message):
    __slots__ = ("optimizer", "learning_rate", "muon_learning_rate", "muon_momentum", "router_lr_scale", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2", "adam_eps", "clip_norm", "selection_bias_rate", "masters", "moments", "frozen_dtype", "trunk", "lora_rank", "lora_lr_scale", "clipping")
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    MUON_LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    MUON_MOMENTUM_FIELD_NUMBER: _ClassVar[int]
    ROUTER_LR_SCALE_FIELD_NUMBER: _ClassVar[int]
    WARMUP_STEPS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    ADAM_BETA1_FIELD_NUMBER: _ClassVar[int]
    ADAM_BETA2_FIELD_NUMBER: _ClassVar[int]
    ADAM_EPS_FIELD_NUMBER: _ClassVar[int]
    CLIP_NORM_FIELD_NUMBER: _ClassVar[int]
    SELECTION_BIAS_RATE_FIELD_NUMBER: _ClassVar[int]
    MASTERS_FIELD_NUMBER: _ClassVar[int]
    MOMENTS_FIELD_NUMBER: _ClassVar[int]
    FROZEN_DTYPE_FIELD_NUMBER: _ClassVar[int]
    TRUNK_FIELD_NUMBER: _ClassVar[int]
    LORA_RANK_FIELD_NUMBER: _ClassVar[int]
    LORA_LR_SCALE_FIELD_NUMBER: _ClassVar[int]
    CLIPPING_FIELD_NUMBER: _ClassVar[int]
    optimizer: str
    learning_rate: float
    muon_learning_rate: float
    muon_momentum: float
    router_lr_scale: float
    warmup_steps: int
    weight_decay: float
    adam_beta1: float
    adam_beta2: float
    adam_eps: float
    clip_norm: float
    selection_bias_rate: float
    masters: str
    moments: str
    frozen_dtype: str
    trunk: str
    lora_rank: int
    lora_lr_scale: float
    clipping: str
    def __init__(self, optimizer: _Optional[str] = ..., learning_rate: _Optional[float] = ..., muon_learning_rate: _Optional[float] = ..., muon_momentum: _Optional[float] = ..., router_lr_scale: _Optional[float] = ..., warmup_steps: _Optional[int] = ..., weight_decay: _Optional[float] = ..., adam_beta1: _Optional[float] = ..., adam_beta2: _Optional[float] = ..., adam_eps: _Optional[float] = ..., clip_norm: _Optional[float] = ..., selection_bias_rate: _Optional[float] = ..., masters: _Optional[str] = ..., moments: _Optional[str] = ..., frozen_dtype: _Optional[str] = ..., trunk: _Optional[str] = ..., lora_rank: _Optional[int] = ..., lora_lr_scale: _Optional[float] = ..., clipping: _Optional[str] = ...) -> None: ...

class FrozenColumns(_message.Message):
    __slots__ = ("version", "codec")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    version: int
    codec: str
    def __init__(self, version: _Optional[int] = ..., codec: _Optional[str] = ...) -> None: ...

class Lease(_message.Message):
    __slots__ = ("lease_id", "round", "base_version", "columns", "data", "seed", "inner_steps", "batch_sequences", "ttl_s", "recipe", "frozen", "codec", "residuals", "lora_seed")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    BASE_VERSION_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    INNER_STEPS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    FROZEN_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    RESIDUALS_FIELD_NUMBER: _ClassVar[int]
    LORA_SEED_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    round: int
    base_version: int
    columns: _containers.RepeatedScalarFieldContainer[int]
    data: DataRange
    seed: int
    inner_steps: int
    batch_sequences: int
    ttl_s: float
    recipe: Recipe
    frozen: FrozenColumns
    codec: str
    residuals: _containers.RepeatedScalarFieldContainer[str]
    lora_seed: int
    def __init__(self, lease_id: _Optional[str] = ..., round: _Optional[int] = ..., base_version: _Optional[int] = ..., columns: _Optional[_Iterable[int]] = ..., data: _Optional[_Union[DataRange, _Mapping]] = ..., seed: _Optional[int] = ..., inner_steps: _Optional[int] = ..., batch_sequences: _Optional[int] = ..., ttl_s: _Optional[float] = ..., recipe: _Optional[_Union[Recipe, _Mapping]] = ..., frozen: _Optional[_Union[FrozenColumns, _Mapping]] = ..., codec: _Optional[str] = ..., residuals: _Optional[_Iterable[str]] = ..., lora_seed: _Optional[int] = ...) -> None: ...

class AcquireLeaseRequest(_message.Message):
    __slots__ = ("wait_s",)
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    wait_s: float
    def __init__(self, wait_s: _Optional[float] = ...) -> None: ...

class AcquireLeaseReply(_message.Message):
    __slots__ = ("lease", "wait", "over", "verdicts", "open", "measure", "peers")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    OVER_FIELD_NUMBER: _ClassVar[int]
    VERDICTS_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    MEASURE_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    lease: Lease
    wait: Wait
    over: RunOver
    verdicts: _containers.RepeatedCompositeFieldContainer[Verdict]
    open: _containers.RepeatedCompositeFieldContainer[WantedResidual]
    measure: MeasureItem
    peers: bool
    def __init__(self, lease: _Optional[_Union[Lease, _Mapping]] = ..., wait: _Optional[_Union[Wait, _Mapping]] = ..., over: _Optional[_Union[RunOver, _Mapping]] = ..., verdicts: _Optional[_Iterable[_Union[Verdict, _Mapping]]] = ..., open: _Optional[_Iterable[_Union[WantedResidual, _Mapping]]] = ..., measure: _Optional[_Union[MeasureItem, _Mapping]] = ..., peers: _Optional[bool] = ...) -> None: ...

class MeasureItem(_message.Message):
    __slots__ = ("item_id", "base_version", "columns", "codec", "digest", "payload_bytes", "sequences", "parts", "trunk", "lora_rank", "lora_seed")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    BASE_VERSION_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    TRUNK_FIELD_NUMBER: _ClassVar[int]
    LORA_RANK_FIELD_NUMBER: _ClassVar[int]
    LORA_SEED_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    base_version: int
    columns: _containers.RepeatedScalarFieldContainer[int]
    codec: str
    digest: bytes
    payload_bytes: int
    sequences: int
    parts: _containers.RepeatedCompositeFieldContainer[MeasurePart]
    trunk: str
    lora_rank: int
    lora_seed: int
    def __init__(self, item_id: _Optional[str] = ..., base_version: _Optional[int] = ..., columns: _Optional[_Iterable[int]] = ..., codec: _Optional[str] = ..., digest: _Optional[bytes] = ..., payload_bytes: _Optional[int] = ..., sequences: _Optional[int] = ..., parts: _Optional[_Iterable[_Union[MeasurePart, _Mapping]]] = ..., trunk: _Optional[str] = ..., lora_rank: _Optional[int] = ..., lora_seed: _Optional[int] = ...) -> None: ...

class MeasurePart(_message.Message):
    __slots__ = ("share", "start", "stop")
    SHARE_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    share: float
    start: int
    stop: int
    def __init__(self, share: _Optional[float] = ..., start: _Optional[int] = ..., stop: _Optional[int] = ...) -> None: ...

class AnswerMeasureRequest(_message.Message):
    __slots__ = ("item_id", "before", "after", "error")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    before: _containers.RepeatedScalarFieldContainer[float]
    after: _containers.RepeatedScalarFieldContainer[float]
    error: str
    def __init__(self, item_id: _Optional[str] = ..., before: _Optional[_Iterable[float]] = ..., after: _Optional[_Iterable[float]] = ..., error: _Optional[str] = ...) -> None: ...

class AnswerMeasureReply(_message.Message):
    __slots__ = ("taken",)
    TAKEN_FIELD_NUMBER: _ClassVar[int]
    taken: bool
    def __init__(self, taken: _Optional[bool] = ...) -> None: ...

class WantedResidual(_message.Message):
    __slots__ = ("lease_id", "digest", "offset")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    digest: str
    offset: int
    def __init__(self, lease_id: _Optional[str] = ..., digest: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class Wait(_message.Message):
    __slots__ = ("reason", "retry_after_s")
    REASON_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    reason: str
    retry_after_s: float
    def __init__(self, reason: _Optional[str] = ..., retry_after_s: _Optional[float] = ...) -> None: ...

class RunOver(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class ReturnLeaseRequest(_message.Message):
    __slots__ = ("lease_id", "reason")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    reason: str
    def __init__(self, lease_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ReturnLeaseReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("lease_id", "inner_step", "train_loss", "tokens_per_s", "sending_lease_id", "paused", "paused_for_s")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    INNER_STEP_FIELD_NUMBER: _ClassVar[int]
    TRAIN_LOSS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    SENDING_LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    PAUSED_FOR_S_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    inner_step: int
    train_loss: float
    tokens_per_s: float
    sending_lease_id: str
    paused: bool
    paused_for_s: float
    def __init__(self, lease_id: _Optional[str] = ..., inner_step: _Optional[int] = ..., train_loss: _Optional[float] = ..., tokens_per_s: _Optional[float] = ..., sending_lease_id: _Optional[str] = ..., paused: _Optional[bool] = ..., paused_for_s: _Optional[float] = ...) -> None: ...

class HeartbeatReply(_message.Message):
    __slots__ = ("cancelled", "latest_version", "announcement", "archives")
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    LATEST_VERSION_FIELD_NUMBER: _ClassVar[int]
    ANNOUNCEMENT_FIELD_NUMBER: _ClassVar[int]
    ARCHIVES_FIELD_NUMBER: _ClassVar[int]
    cancelled: _containers.RepeatedCompositeFieldContainer[CancelledLease]
    latest_version: int
    announcement: str
    archives: bool
    def __init__(self, cancelled: _Optional[_Iterable[_Union[CancelledLease, _Mapping]]] = ..., latest_version: _Optional[int] = ..., announcement: _Optional[str] = ..., archives: _Optional[bool] = ...) -> None: ...

class CancelledLease(_message.Message):
    __slots__ = ("lease_id", "reason")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    reason: str
    def __init__(self, lease_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class CommitSubmissionRequest(_message.Message):
    __slots__ = ("lease_id", "digest", "payload_bytes", "codec", "inner_steps_done", "tokens", "train_loss_first", "train_loss_last", "train_s", "micro_batch", "arithmetic", "residuals_in", "residuals_out", "residuals_back")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    INNER_STEPS_DONE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TRAIN_LOSS_FIRST_FIELD_NUMBER: _ClassVar[int]
    TRAIN_LOSS_LAST_FIELD_NUMBER: _ClassVar[int]
    TRAIN_S_FIELD_NUMBER: _ClassVar[int]
    MICRO_BATCH_FIELD_NUMBER: _ClassVar[int]
    ARITHMETIC_FIELD_NUMBER: _ClassVar[int]
    RESIDUALS_IN_FIELD_NUMBER: _ClassVar[int]
    RESIDUALS_OUT_FIELD_NUMBER: _ClassVar[int]
    RESIDUALS_BACK_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    digest: bytes
    payload_bytes: int
    codec: str
    inner_steps_done: int
    tokens: int
    train_loss_first: float
    train_loss_last: float
    train_s: float
    micro_batch: int
    arithmetic: str
    residuals_in: _containers.RepeatedScalarFieldContainer[str]
    residuals_out: _containers.RepeatedScalarFieldContainer[str]
    residuals_back: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, lease_id: _Optional[str] = ..., digest: _Optional[bytes] = ..., payload_bytes: _Optional[int] = ..., codec: _Optional[str] = ..., inner_steps_done: _Optional[int] = ..., tokens: _Optional[int] = ..., train_loss_first: _Optional[float] = ..., train_loss_last: _Optional[float] = ..., train_s: _Optional[float] = ..., micro_batch: _Optional[int] = ..., arithmetic: _Optional[str] = ..., residuals_in: _Optional[_Iterable[str]] = ..., residuals_out: _Optional[_Iterable[str]] = ..., residuals_back: _Optional[_Iterable[str]] = ...) -> None: ...

class CommitSubmissionReply(_message.Message):
    __slots__ = ("upload_offset", "verdict")
    UPLOAD_OFFSET_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    upload_offset: int
    verdict: Verdict
    def __init__(self, upload_offset: _Optional[int] = ..., verdict: _Optional[_Union[Verdict, _Mapping]] = ...) -> None: ...

class UploadHeader(_message.Message):
    __slots__ = ("lease_id", "digest", "payload_bytes", "offset")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    digest: bytes
    payload_bytes: int
    offset: int
    def __init__(self, lease_id: _Optional[str] = ..., digest: _Optional[bytes] = ..., payload_bytes: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class UploadReply(_message.Message):
    __slots__ = ("received_bytes", "complete")
    RECEIVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    received_bytes: int
    complete: bool
    def __init__(self, received_bytes: _Optional[int] = ..., complete: _Optional[bool] = ...) -> None: ...

class Verdict(_message.Message):
    __slots__ = ("lease_id", "outcome", "reason")
    class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        PENDING: _ClassVar[Verdict.Outcome]
        ACCEPTED: _ClassVar[Verdict.Outcome]
        REJECTED: _ClassVar[Verdict.Outcome]
    PENDING: Verdict.Outcome
    ACCEPTED: Verdict.Outcome
    REJECTED: Verdict.Outcome
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    outcome: Verdict.Outcome
    reason: str
    def __init__(self, lease_id: _Optional[str] = ..., outcome: _Optional[_Union[Verdict.Outcome, str]] = ..., reason: _Optional[str] = ...) -> None: ...

class AskAuditRequest(_message.Message):
    __slots__ = ("public_key", "lease_id")
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    public_key: bytes
    lease_id: str
    def __init__(self, public_key: _Optional[bytes] = ..., lease_id: _Optional[str] = ...) -> None: ...

class AskAuditReply(_message.Message):
    __slots__ = ("taken", "reason")
    TAKEN_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    taken: bool
    reason: str
    def __init__(self, taken: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...

class ListReceiptsRequest(_message.Message):
    __slots__ = ("after",)
    AFTER_FIELD_NUMBER: _ClassVar[int]
    after: int
    def __init__(self, after: _Optional[int] = ...) -> None: ...

class SignedReceipt(_message.Message):
    __slots__ = ("receipt_json", "signature")
    RECEIPT_JSON_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    receipt_json: bytes
    signature: bytes
    def __init__(self, receipt_json: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class ListReceiptsReply(_message.Message):
    __slots__ = ("receipts", "next", "revocations_json", "revocations_signature", "standing")
    RECEIPTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    REVOCATIONS_JSON_FIELD_NUMBER: _ClassVar[int]
    REVOCATIONS_SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    STANDING_FIELD_NUMBER: _ClassVar[int]
    receipts: _containers.RepeatedCompositeFieldContainer[SignedReceipt]
    next: int
    revocations_json: bytes
    revocations_signature: bytes
    standing: CreditStanding
    def __init__(self, receipts: _Optional[_Iterable[_Union[SignedReceipt, _Mapping]]] = ..., next: _Optional[int] = ..., revocations_json: _Optional[bytes] = ..., revocations_signature: _Optional[bytes] = ..., standing: _Optional[_Union[CreditStanding, _Mapping]] = ...) -> None: ...

class CreditStanding(_message.Message):
    __slots__ = ("tokens", "rank", "ranked", "losses")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    RANKED_FIELD_NUMBER: _ClassVar[int]
    LOSSES_FIELD_NUMBER: _ClassVar[int]
    tokens: int
    rank: int
    ranked: int
    losses: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, tokens: _Optional[int] = ..., rank: _Optional[int] = ..., ranked: _Optional[int] = ..., losses: _Optional[_Iterable[float]] = ...) -> None: ...

class LeaveRequest(_message.Message):
    __slots__ = ("public_key", "nonce", "forget", "revoke")
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    FORGET_FIELD_NUMBER: _ClassVar[int]
    REVOKE_FIELD_NUMBER: _ClassVar[int]
    public_key: bytes
    nonce: bytes
    forget: bool
    revoke: bool
    def __init__(self, public_key: _Optional[bytes] = ..., nonce: _Optional[bytes] = ..., forget: _Optional[bool] = ..., revoke: _Optional[bool] = ...) -> None: ...

class LeaveReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RotateKeyRequest(_message.Message):
    __slots__ = ("public_key", "nonce", "new_public_key", "new_signature")
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    NEW_PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    NEW_SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    public_key: bytes
    nonce: bytes
    new_public_key: bytes
    new_signature: bytes
    def __init__(self, public_key: _Optional[bytes] = ..., nonce: _Optional[bytes] = ..., new_public_key: _Optional[bytes] = ..., new_signature: _Optional[bytes] = ...) -> None: ...

class RotateKeyReply(_message.Message):
    __slots__ = ("worker_id",)
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    def __init__(self, worker_id: _Optional[str] = ...) -> None: ...

class GetManifestRequest(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: int
    def __init__(self, version: _Optional[int] = ...) -> None: ...

class GetManifestReply(_message.Message):
    __slots__ = ("manifest_json", "signature")
    MANIFEST_JSON_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    manifest_json: bytes
    signature: bytes
    def __init__(self, manifest_json: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class DownloadRequest(_message.Message):
    __slots__ = ("block_digest", "lease_data", "measure_data", "measure_payload", "offset")
    BLOCK_DIGEST_FIELD_NUMBER: _ClassVar[int]
    LEASE_DATA_FIELD_NUMBER: _ClassVar[int]
    MEASURE_DATA_FIELD_NUMBER: _ClassVar[int]
    MEASURE_PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    block_digest: bytes
    lease_data: str
    measure_data: str
    measure_payload: str
    offset: int
    def __init__(self, block_digest: _Optional[bytes] = ..., lease_data: _Optional[str] = ..., measure_data: _Optional[str] = ..., measure_payload: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class ArchiveRequest(_message.Message):
    __slots__ = ("held_version", "held_manifest")
    HELD_VERSION_FIELD_NUMBER: _ClassVar[int]
    HELD_MANIFEST_FIELD_NUMBER: _ClassVar[int]
    held_version: int
    held_manifest: bytes
    def __init__(self, held_version: _Optional[int] = ..., held_manifest: _Optional[bytes] = ...) -> None: ...

class ArchiveReply(_message.Message):
    __slots__ = ("version", "record_json", "record_signature", "notice")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RECORD_JSON_FIELD_NUMBER: _ClassVar[int]
    RECORD_SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    NOTICE_FIELD_NUMBER: _ClassVar[int]
    version: int
    record_json: bytes
    record_signature: bytes
    notice: str
    def __init__(self, version: _Optional[int] = ..., record_json: _Optional[bytes] = ..., record_signature: _Optional[bytes] = ..., notice: _Optional[str] = ...) -> None: ...

class SourcesRequest(_message.Message):
    __slots__ = ("wanted", "taking", "got", "gone", "whole", "still_s", "share", "room", "failed", "unchunked", "relay", "node")
    WANTED_FIELD_NUMBER: _ClassVar[int]
    TAKING_FIELD_NUMBER: _ClassVar[int]
    GOT_FIELD_NUMBER: _ClassVar[int]
    GONE_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    STILL_S_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    ROOM_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    UNCHUNKED_FIELD_NUMBER: _ClassVar[int]
    RELAY_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    wanted: _containers.RepeatedScalarFieldContainer[bytes]
    taking: _containers.RepeatedScalarFieldContainer[bytes]
    got: _containers.RepeatedScalarFieldContainer[bytes]
    gone: _containers.RepeatedScalarFieldContainer[bytes]
    whole: bool
    still_s: float
    share: Sharing
    room: int
    failed: _containers.RepeatedScalarFieldContainer[bytes]
    unchunked: _containers.RepeatedScalarFieldContainer[bytes]
    relay: RelayOffer
    node: str
    def __init__(self, wanted: _Optional[_Iterable[bytes]] = ..., taking: _Optional[_Iterable[bytes]] = ..., got: _Optional[_Iterable[bytes]] = ..., gone: _Optional[_Iterable[bytes]] = ..., whole: _Optional[bool] = ..., still_s: _Optional[float] = ..., share: _Optional[_Union[Sharing, _Mapping]] = ..., room: _Optional[int] = ..., failed: _Optional[_Iterable[bytes]] = ..., unchunked: _Optional[_Iterable[bytes]] = ..., relay: _Optional[_Union[RelayOffer, _Mapping]] = ..., node: _Optional[str] = ...) -> None: ...

class RelayOffer(_message.Message):
    __slots__ = ("peer_id", "port")
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    peer_id: str
    port: int
    def __init__(self, peer_id: _Optional[str] = ..., port: _Optional[int] = ...) -> None: ...

class Sharing(_message.Message):
    __slots__ = ("port", "certificate", "peer_id", "through")
    PORT_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    THROUGH_FIELD_NUMBER: _ClassVar[int]
    port: int
    certificate: bytes
    peer_id: str
    through: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, port: _Optional[int] = ..., certificate: _Optional[bytes] = ..., peer_id: _Optional[str] = ..., through: _Optional[_Iterable[str]] = ...) -> None: ...

class SourcesReply(_message.Message):
    __slots__ = ("holders", "sources", "ticket", "now_s", "retry_after_s", "book", "notice", "record", "neighbours", "chunks", "relays", "relay_notice", "relay_pass")
    HOLDERS_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    NOW_S_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    BOOK_FIELD_NUMBER: _ClassVar[int]
    NOTICE_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    NEIGHBOURS_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    RELAYS_FIELD_NUMBER: _ClassVar[int]
    RELAY_NOTICE_FIELD_NUMBER: _ClassVar[int]
    RELAY_PASS_FIELD_NUMBER: _ClassVar[int]
    holders: _containers.RepeatedCompositeFieldContainer[Holder]
    sources: _containers.RepeatedCompositeFieldContainer[BlockSources]
    ticket: PeerTicket
    now_s: float
    retry_after_s: float
    book: bytes
    notice: str
    record: bytes
    neighbours: _containers.RepeatedCompositeFieldContainer[Holder]
    chunks: _containers.RepeatedCompositeFieldContainer[BlockChunks]
    relays: _containers.RepeatedScalarFieldContainer[str]
    relay_notice: str
    relay_pass: bytes
    def __init__(self, holders: _Optional[_Iterable[_Union[Holder, _Mapping]]] = ..., sources: _Optional[_Iterable[_Union[BlockSources, _Mapping]]] = ..., ticket: _Optional[_Union[PeerTicket, _Mapping]] = ..., now_s: _Optional[float] = ..., retry_after_s: _Optional[float] = ..., book: _Optional[bytes] = ..., notice: _Optional[str] = ..., record: _Optional[bytes] = ..., neighbours: _Optional[_Iterable[_Union[Holder, _Mapping]]] = ..., chunks: _Optional[_Iterable[_Union[BlockChunks, _Mapping]]] = ..., relays: _Optional[_Iterable[str]] = ..., relay_notice: _Optional[str] = ..., relay_pass: _Optional[bytes] = ...) -> None: ...

class Holder(_message.Message):
    __slots__ = ("host", "port", "certificate", "peer_id", "through")
    HOST_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    THROUGH_FIELD_NUMBER: _ClassVar[int]
    host: str
    port: int
    certificate: bytes
    peer_id: str
    through: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, host: _Optional[str] = ..., port: _Optional[int] = ..., certificate: _Optional[bytes] = ..., peer_id: _Optional[str] = ..., through: _Optional[_Iterable[str]] = ...) -> None: ...

class BlockChunks(_message.Message):
    __slots__ = ("digest", "chunk_bytes", "digests")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    chunk_bytes: int
    digests: bytes
    def __init__(self, digest: _Optional[bytes] = ..., chunk_bytes: _Optional[int] = ..., digests: _Optional[bytes] = ...) -> None: ...

class BlockSources(_message.Message):
    __slots__ = ("digest", "holders", "granted")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    HOLDERS_FIELD_NUMBER: _ClassVar[int]
    GRANTED_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    holders: _containers.RepeatedScalarFieldContainer[int]
    granted: bool
    def __init__(self, digest: _Optional[bytes] = ..., holders: _Optional[_Iterable[int]] = ..., granted: _Optional[bool] = ...) -> None: ...

class PeerTicket(_message.Message):
    __slots__ = ("public_key", "run_id", "expires_s", "signature")
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_S_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    public_key: bytes
    run_id: str
    expires_s: float
    signature: bytes
    def __init__(self, public_key: _Optional[bytes] = ..., run_id: _Optional[str] = ..., expires_s: _Optional[float] = ..., signature: _Optional[bytes] = ...) -> None: ...

class PeerGreeting(_message.Message):
    __slots__ = ("nonce",)
    NONCE_FIELD_NUMBER: _ClassVar[int]
    nonce: bytes
    def __init__(self, nonce: _Optional[bytes] = ...) -> None: ...

class TakeRequest(_message.Message):
    __slots__ = ("digest", "payload_bytes", "offset", "ticket", "proof")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    payload_bytes: int
    offset: int
    ticket: PeerTicket
    proof: bytes
    def __init__(self, digest: _Optional[bytes] = ..., payload_bytes: _Optional[int] = ..., offset: _Optional[int] = ..., ticket: _Optional[_Union[PeerTicket, _Mapping]] = ..., proof: _Optional[bytes] = ...) -> None: ...

class RunRecord(_message.Message):
    __slots__ = ("run_id", "epoch", "sequence", "addresses", "issued_s", "expires_s", "ca_certificate", "public_key", "vouch")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    ISSUED_S_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_S_FIELD_NUMBER: _ClassVar[int]
    CA_CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    VOUCH_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    epoch: int
    sequence: int
    addresses: _containers.RepeatedScalarFieldContainer[str]
    issued_s: float
    expires_s: float
    ca_certificate: bytes
    public_key: bytes
    vouch: bytes
    def __init__(self, run_id: _Optional[str] = ..., epoch: _Optional[int] = ..., sequence: _Optional[int] = ..., addresses: _Optional[_Iterable[str]] = ..., issued_s: _Optional[float] = ..., expires_s: _Optional[float] = ..., ca_certificate: _Optional[bytes] = ..., public_key: _Optional[bytes] = ..., vouch: _Optional[bytes] = ...) -> None: ...

class SignedRecord(_message.Message):
    __slots__ = ("record", "signature")
    RECORD_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    record: bytes
    signature: bytes
    def __init__(self, record: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class FindRequest(_message.Message):
    __slots__ = ("fingerprint", "record")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    fingerprint: bytes
    record: bytes
    def __init__(self, fingerprint: _Optional[bytes] = ..., record: _Optional[bytes] = ...) -> None: ...

class FindReply(_message.Message):
    __slots__ = ("record",)
    RECORD_FIELD_NUMBER: _ClassVar[int]
    record: bytes
    def __init__(self, record: _Optional[bytes] = ...) -> None: ...

class CreateInviteRequest(_message.Message):
    __slots__ = ("trusted", "expires_in_s", "count", "owner", "uses")
    TRUSTED_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_IN_S_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    USES_FIELD_NUMBER: _ClassVar[int]
    trusted: bool
    expires_in_s: float
    count: int
    owner: str
    uses: int
    def __init__(self, trusted: _Optional[bool] = ..., expires_in_s: _Optional[float] = ..., count: _Optional[int] = ..., owner: _Optional[str] = ..., uses: _Optional[int] = ...) -> None: ...

class CreateInviteReply(_message.Message):
    __slots__ = ("join_links",)
    JOIN_LINKS_FIELD_NUMBER: _ClassVar[int]
    join_links: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, join_links: _Optional[_Iterable[str]] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusReply(_message.Message):
    __slots__ = ("status_json",)
    STATUS_JSON_FIELD_NUMBER: _ClassVar[int]
    status_json: str
    def __init__(self, status_json: _Optional[str] = ...) -> None: ...

class ListStatusRequest(_message.Message):
    __slots__ = ("kind", "after", "most", "states")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        WORKERS: _ClassVar[ListStatusRequest.Kind]
        ROUNDS: _ClassVar[ListStatusRequest.Kind]
        VALIDATIONS: _ClassVar[ListStatusRequest.Kind]
        CHECKPOINTS: _ClassVar[ListStatusRequest.Kind]
    WORKERS: ListStatusRequest.Kind
    ROUNDS: ListStatusRequest.Kind
    VALIDATIONS: ListStatusRequest.Kind
    CHECKPOINTS: ListStatusRequest.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    MOST_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    kind: ListStatusRequest.Kind
    after: str
    most: int
    states: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, kind: _Optional[_Union[ListStatusRequest.Kind, str]] = ..., after: _Optional[str] = ..., most: _Optional[int] = ..., states: _Optional[_Iterable[str]] = ...) -> None: ...

class ListStatusReply(_message.Message):
    __slots__ = ("rows_json", "next")
    ROWS_JSON_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    rows_json: _containers.RepeatedScalarFieldContainer[str]
    next: str
    def __init__(self, rows_json: _Optional[_Iterable[str]] = ..., next: _Optional[str] = ...) -> None: ...

class StopRunRequest(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class StopRunReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ChangeSettingRequest(_message.Message):
    __slots__ = ("key", "value")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    key: str
    value: str
    def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...

class ChangeSettingReply(_message.Message):
    __slots__ = ("key", "before_json", "value_json", "from_round", "file_trouble", "caution")
    KEY_FIELD_NUMBER: _ClassVar[int]
    BEFORE_JSON_FIELD_NUMBER: _ClassVar[int]
    VALUE_JSON_FIELD_NUMBER: _ClassVar[int]
    FROM_ROUND_FIELD_NUMBER: _ClassVar[int]
    FILE_TROUBLE_FIELD_NUMBER: _ClassVar[int]
    CAUTION_FIELD_NUMBER: _ClassVar[int]
    key: str
    before_json: str
    value_json: str
    from_round: int
    file_trouble: str
    caution: str
    def __init__(self, key: _Optional[str] = ..., before_json: _Optional[str] = ..., value_json: _Optional[str] = ..., from_round: _Optional[int] = ..., file_trouble: _Optional[str] = ..., caution: _Optional[str] = ...) -> None: ...

class ChangeStandingRequest(_message.Message):
    __slots__ = ("act", "worker", "owner", "invite", "why")
    class Act(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        BAN: _ClassVar[ChangeStandingRequest.Act]
        UNBAN: _ClassVar[ChangeStandingRequest.Act]
        PARDON: _ClassVar[ChangeStandingRequest.Act]
        ROLLBACK: _ClassVar[ChangeStandingRequest.Act]
    BAN: ChangeStandingRequest.Act
    UNBAN: ChangeStandingRequest.Act
    PARDON: ChangeStandingRequest.Act
    ROLLBACK: ChangeStandingRequest.Act
    ACT_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    INVITE_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    act: ChangeStandingRequest.Act
    worker: str
    owner: str
    invite: str
    why: str
    def __init__(self, act: _Optional[_Union[ChangeStandingRequest.Act, str]] = ..., worker: _Optional[str] = ..., owner: _Optional[str] = ..., invite: _Optional[str] = ..., why: _Optional[str] = ...) -> None: ...

class ChangeStandingReply(_message.Message):
    __slots__ = ("change_json",)
    CHANGE_JSON_FIELD_NUMBER: _ClassVar[int]
    change_json: str
    def __init__(self, change_json: _Optional[str] = ...) -> None: ...

class HoldRunRequest(_message.Message):
    __slots__ = ("kind", "why")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        PAUSE: _ClassVar[HoldRunRequest.Kind]
        DRAIN: _ClassVar[HoldRunRequest.Kind]
        RESUME: _ClassVar[HoldRunRequest.Kind]
    PAUSE: HoldRunRequest.Kind
    DRAIN: HoldRunRequest.Kind
    RESUME: HoldRunRequest.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    kind: HoldRunRequest.Kind
    why: str
    def __init__(self, kind: _Optional[_Union[HoldRunRequest.Kind, str]] = ..., why: _Optional[str] = ...) -> None: ...

class HoldRunReply(_message.Message):
    __slots__ = ("before", "now")
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    NOW_FIELD_NUMBER: _ClassVar[int]
    before: str
    now: str
    def __init__(self, before: _Optional[str] = ..., now: _Optional[str] = ...) -> None: ...

class AnnounceRequest(_message.Message):
    __slots__ = ("text",)
    TEXT_FIELD_NUMBER: _ClassVar[int]
    text: str
    def __init__(self, text: _Optional[str] = ...) -> None: ...

class AnnounceReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListInvitesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListInvitesReply(_message.Message):
    __slots__ = ("rows_json", "more")
    ROWS_JSON_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    rows_json: _containers.RepeatedScalarFieldContainer[str]
    more: int
    def __init__(self, rows_json: _Optional[_Iterable[str]] = ..., more: _Optional[int] = ...) -> None: ...

class RevokeInviteRequest(_message.Message):
    __slots__ = ("invite",)
    INVITE_FIELD_NUMBER: _ClassVar[int]
    invite: str
    def __init__(self, invite: _Optional[str] = ...) -> None: ...

class RevokeInviteReply(_message.Message):
    __slots__ = ("invite", "changed")
    INVITE_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    invite: str
    changed: bool
    def __init__(self, invite: _Optional[str] = ..., changed: _Optional[bool] = ...) -> None: ...

class ListOrdersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListOrdersReply(_message.Message):
    __slots__ = ("rows_json",)
    ROWS_JSON_FIELD_NUMBER: _ClassVar[int]
    rows_json: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, rows_json: _Optional[_Iterable[str]] = ...) -> None: ...

class LoginRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LoginReply(_message.Message):
    __slots__ = ("urls", "good_for_s")
    URLS_FIELD_NUMBER: _ClassVar[int]
    GOOD_FOR_S_FIELD_NUMBER: _ClassVar[int]
    urls: _containers.RepeatedScalarFieldContainer[str]
    good_for_s: float
    def __init__(self, urls: _Optional[_Iterable[str]] = ..., good_for_s: _Optional[float] = ...) -> None: ...

class FollowRequest(_message.Message):
    __slots__ = ("protocol_version", "engine_version", "public_key", "nonce", "invite", "follower", "epoch", "position", "chain")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    ENGINE_VERSION_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    INVITE_FIELD_NUMBER: _ClassVar[int]
    FOLLOWER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    engine_version: int
    public_key: bytes
    nonce: bytes
    invite: str
    follower: str
    epoch: int
    position: int
    chain: bytes
    def __init__(self, protocol_version: _Optional[int] = ..., engine_version: _Optional[int] = ..., public_key: _Optional[bytes] = ..., nonce: _Optional[bytes] = ..., invite: _Optional[str] = ..., follower: _Optional[str] = ..., epoch: _Optional[int] = ..., position: _Optional[int] = ..., chain: _Optional[bytes] = ...) -> None: ...

class FollowAck(_message.Message):
    __slots__ = ("position",)
    POSITION_FIELD_NUMBER: _ClassVar[int]
    position: int
    def __init__(self, position: _Optional[int] = ...) -> None: ...

class HeldFile(_message.Message):
    __slots__ = ("name", "digest", "size_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: bytes
    size_bytes: int
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[bytes] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class FollowBatch(_message.Message):
    __slots__ = ("epoch", "after", "records", "chain", "files", "is_base", "committed", "waits")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    IS_BASE_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    WAITS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    after: int
    records: _containers.RepeatedScalarFieldContainer[str]
    chain: bytes
    files: _containers.RepeatedCompositeFieldContainer[HeldFile]
    is_base: bool
    committed: int
    waits: bool
    def __init__(self, epoch: _Optional[int] = ..., after: _Optional[int] = ..., records: _Optional[_Iterable[str]] = ..., chain: _Optional[bytes] = ..., files: _Optional[_Iterable[_Union[HeldFile, _Mapping]]] = ..., is_base: _Optional[bool] = ..., committed: _Optional[int] = ..., waits: _Optional[bool] = ...) -> None: ...

class FollowPart(_message.Message):
    __slots__ = ("part", "more")
    PART_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    part: bytes
    more: bool
    def __init__(self, part: _Optional[bytes] = ..., more: _Optional[bool] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("public_key", "nonce", "file", "offset")
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    public_key: bytes
    nonce: bytes
    file: HeldFile
    offset: int
    def __init__(self, public_key: _Optional[bytes] = ..., nonce: _Optional[bytes] = ..., file: _Optional[_Union[HeldFile, _Mapping]] = ..., offset: _Optional[int] = ...) -> None: ...

class WitnessRequest(_message.Message):
    __slots__ = ("secret", "run_id", "by", "expects", "want", "confirmed")
    SECRET_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    EXPECTS_FIELD_NUMBER: _ClassVar[int]
    WANT_FIELD_NUMBER: _ClassVar[int]
    CONFIRMED_FIELD_NUMBER: _ClassVar[int]
    secret: str
    run_id: str
    by: str
    expects: int
    want: WitnessHeld
    confirmed: bool
    def __init__(self, secret: _Optional[str] = ..., run_id: _Optional[str] = ..., by: _Optional[str] = ..., expects: _Optional[int] = ..., want: _Optional[_Union[WitnessHeld, _Mapping]] = ..., confirmed: _Optional[bool] = ...) -> None: ...

class WitnessHeld(_message.Message):
    __slots__ = ("number", "epoch", "leader", "sync", "follower")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LEADER_FIELD_NUMBER: _ClassVar[int]
    SYNC_FIELD_NUMBER: _ClassVar[int]
    FOLLOWER_FIELD_NUMBER: _ClassVar[int]
    number: int
    epoch: int
    leader: str
    sync: bool
    follower: str
    def __init__(self, number: _Optional[int] = ..., epoch: _Optional[int] = ..., leader: _Optional[str] = ..., sync: _Optional[bool] = ..., follower: _Optional[str] = ...) -> None: ...

class WitnessReply(_message.Message):
    __slots__ = ("held", "granted", "why")
    HELD_FIELD_NUMBER: _ClassVar[int]
    GRANTED_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    held: WitnessHeld
    granted: bool
    why: str
    def __init__(self, held: _Optional[_Union[WitnessHeld, _Mapping]] = ..., granted: _Optional[bool] = ..., why: _Optional[str] = ...) -> None: ...
