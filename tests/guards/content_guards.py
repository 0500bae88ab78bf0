"""Guards of the coordinator's edge that look at what is in a message: sizes, numbers, tensors, frames, names."""

from __future__ import annotations

from tests.guards.guard import Cut, Guard, guard

LIMITS = "protocol/limits.py"
RPC = "coordinator/edge/rpc.py"
SERVICE = "coordinator/edge/service.py"
TRANSFERS = "coordinator/edge/transfers.py"
FRAMING = "protocol/framing.py"
ARTIFACTS = "coordinator/store/artifacts.py"
INVITES = "coordinator/store/registry.py"
MEMBERSHIP = "coordinator/edge/membership.py"
TENSORS = "protocol/tensors.py"
NUMBERS = "test_content.py::test_numbers_that_are_none_are_refused_or_ignored"
BAD_FRAME = "test_content.py::test_a_bad_frame_is_refused"
DRIBBLED = "test_content.py::test_bytes_beyond_the_payload_and_dribbled_frames_are_refused"
OFFSETS = "test_content.py::test_offsets_outside_of_the_payload_are_refused"
OTHER_TENSORS = "test_content.py::test_tensors_of_another_shape_or_dtype_are_rejected_with_the_reason"
OTHER_BYTES = "test_content.py::test_bytes_that_are_not_what_was_committed_are_refused"
TRUNCATED = "test_content.py::test_a_truncated_upload_counts_for_nothing_and_goes_on_where_it_broke"
PATHS = "test_content.py::test_no_name_becomes_a_path"
STORE = "test_content.py::test_no_name_is_a_path_of_the_store"
CONTROL = "test_content.py::test_control_characters_reach_no_terminal_and_no_log"

MESSAGES = (
    guard(
        "an oversized message", LIMITS, '("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)',
        '("grpc.max_receive_message_length", -1)',
        "test_content.py::test_an_oversized_message_is_refused_before_it_is_read",
    ),
    guard(
        "oversized metadata", LIMITS,
        '("grpc.max_metadata_size", MAX_METADATA_BYTES),\n    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES)',
        '("grpc.max_metadata_size", 1 << 20),\n    ("grpc.absolute_max_metadata_size", 1 << 20)',
        "test_content.py::test_oversized_metadata_is_refused",
        note="gRPC has limits of its own where none is named, so the option is widened instead of left out",
    ),
    guard(
        "a decompression bomb", LIMITS, '    ("grpc.compression_enabled_algorithms_bitset", _IDENTITY_ONLY),\n', "",
        "test_content.py::test_a_decompression_bomb_is_not_unpacked",
    ),
    guard(
        "bytes that are no request", RPC,
        'raise MalformedMessage(f"the request is not a {kind.__name__}") from error', "raise",
        "test_content.py::test_bytes_that_are_no_request_are_refused",
        "test_content.py::test_bytes_that_are_no_registration_are_refused",
    ),
    guard(
        "NaN and infinity in any number", SERVICE, "if not math.isfinite(getattr(request, name)):", "if False:",
        NUMBERS,
    ),
    guard(
        "NaN and infinity in any number", SERVICE,
        "train_loss=request.train_loss if math.isfinite(request.train_loss) else None",
        "train_loss=request.train_loss", NUMBERS,
    ),
    guard(
        "NaN and infinity in any number", SERVICE,
        "tokens_per_s=request.tokens_per_s if math.isfinite(request.tokens_per_s) else 0.0",
        "tokens_per_s=request.tokens_per_s", NUMBERS,
    ),
    guard(
        "NaN and infinity in any number", SERVICE,
        "min(max(request.wait_s, 0.0), MAX_WAIT_S) if math.isfinite(request.wait_s) else 0.0",
        "min(max(request.wait_s, 0.0), MAX_WAIT_S)", NUMBERS,
    ),
    guard(
        "NaN and infinity in any number", MEMBERSHIP,
        "if not math.isfinite(speed) or not 0.0 <= speed <= MAX_TOKENS_PER_S:", "if False:", NUMBERS,
        note="either half refuses what is no number",
    ),
    guard(
        "NaN and infinity in any number", "coordinator/edge/status.py",
        "train_loss=fresh.train_loss if fresh else None", 'train_loss=float("inf") if fresh else None',
        "test_content.py::test_status_stays_json_whatever_a_heartbeat_says", NUMBERS,
        note="planted: a status with infinity in it, written as such",
        also=(
            Cut(
                file="coordinator/edge/status.py",
                text="class RunStatus(_Data):\n",
                without='class RunStatus(_Data):\n    model_config = ConfigDict(ser_json_inf_nan="constants")\n',
            ),
            Cut(
                file="coordinator/edge/status.py",
                text="class WorkerStatus(_Data):\n",
                without='class WorkerStatus(_Data):\n    model_config = ConfigDict(ser_json_inf_nan="constants")\n',
            ),
        ),
    ),
)  # fmt: skip

TRANSFER = (
    guard(
        "another digest", FRAMING, "if not hmac.compare_digest(got.encode(), self.digest.encode()):", "if False:",
        OTHER_BYTES,
    ),
    guard(
        "another digest", TRANSFERS, "            self._run.store.drop_upload(lease_id, digest)\n", "", OTHER_BYTES,
    ),
    guard(
        "another shape, dtype or order", TENSORS, " or source.read(0, len(header)) != header", "",
        f"{OTHER_TENSORS}[shape]", f"{OTHER_TENSORS}[dtype]", f"{OTHER_TENSORS}[order]",
    ),
    guard(
        "another shape, dtype or order", TENSORS,
        'if entry.get("dtype") != codec.safetensors_dtype:', "if False:", f"{OTHER_TENSORS}[dtype]",
    ),
    guard(
        "another shape, dtype or order", TENSORS, 'if entry.get("shape") != list(spec.shape):', "if False:",
        f"{OTHER_TENSORS}[shape]",
    ),
    guard(
        "NaN and infinity", "coordinator/work/executor.py", "if not math.isfinite(norm_l2):", "if False:",
        "test_content.py::test_tensors_that_are_not_finite_are_rejected",
        also=(
            Cut(
                file="coordinator/engine/screening.py", text="if not math.isfinite(norm.norm_l2):", without="if False:",
            ),
        ),
        note="what measures a submission and what judges the measure both refuse it",
    ),
    guard(
        "offsets and sizes out of range", TRANSFERS, "if header.offset > header.payload_bytes:", "if False:", OFFSETS,
    ),
    guard("offsets and sizes out of range", ARTIFACTS, "if offset > have:", "if False:", OFFSETS),
    guard(
        "offsets and sizes out of range", FRAMING,
        'if not 0 <= offset <= size:\n        raise MalformedMessage(f"transfer asked',
        'if False:\n        raise MalformedMessage(f"transfer asked', OFFSETS,
    ),
    guard("offsets and sizes out of range", SERVICE, "if request.payload_bytes != expected:", "if False:", OFFSETS),
    guard(
        "offsets and sizes out of range", TRANSFERS,
        " or record.payload_bytes != header.payload_bytes:", ":", OFFSETS,
    ),
    guard(
        "bad, short or surplus frames", FRAMING, "if len(frame) < FRAME_HEADER_BYTES:", "if False:",
        f"{BAD_FRAME}[no header]",
    ),
    guard("bad, short or surplus frames", FRAMING, "if magic != _MAGIC:", "if False:", f"{BAD_FRAME}[magic]"),
    guard(
        "bad, short or surplus frames", FRAMING, "if not 0 < length <= self._frame_bytes:",
        "if not 0 <= length <= self._frame_bytes:", f"{BAD_FRAME}[empty]",
    ),
    guard(
        "bad, short or surplus frames", FRAMING, "if not 0 < length <= self._frame_bytes:", "if not 0 < length:",
        f"{BAD_FRAME}[too long]",
    ),
    guard(
        "bad, short or surplus frames", FRAMING, "if len(frame) != FRAME_HEADER_BYTES + length:", "if False:",
        f"{BAD_FRAME}[another length]",
    ),
    guard(
        "bad, short or surplus frames", FRAMING, "if not 0 < length <= self._frame_bytes:", "if length == 0:",
        f"{BAD_FRAME}[huge length]", note="either refuses a length that is not there",
        also=(Cut(file=FRAMING, text="if len(frame) != FRAME_HEADER_BYTES + length:", without="if False:"),),
    ),
    guard(
        "bad, short or surplus frames", FRAMING, "if offset != self.offset:", "if False:",
        f"{BAD_FRAME}[later]", f"{BAD_FRAME}[huge offset]",
    ),
    guard("bad, short or surplus frames", FRAMING, "if offset + length > self.expected_size:", "if False:", DRIBBLED),
    guard("bad, short or surplus frames", FRAMING, "if self._ended:", "if False:", DRIBBLED),
    guard(
        "a truncated upload", TRANSFERS,
        "            if not reader.complete:\n                return pb.UploadReply(",
        "            if False:\n                return pb.UploadReply(", TRUNCATED,
    ),
    guard(
        "a truncated upload", TRANSFERS, "                if reader.complete:\n", "                if True:\n",
        TRUNCATED,
    ),
    guard(
        "a truncated upload", TRANSFERS, "reader.skip(piece)", "reader._hashed_bytes += len(piece)", TRUNCATED,
        note="what came before the break is part of the digest too",
    ),
)  # fmt: skip

NAMES = (
    guard("path tricks", SERVICE, "if len(digest) != 32:", "if False:", PATHS),
    guard("path tricks", ARTIFACTS, r'_DIGEST = re.compile(r"[0-9a-f]{64}\Z")', '_DIGEST = re.compile(".*")', STORE),
    guard("path tricks", ARTIFACTS, r'[0-9a-f]{64}\Z', "[0-9a-f]{64}", STORE),
    guard(
        "path tricks", ARTIFACTS, r'_LEASE_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")',
        '_LEASE_FILE = re.compile(".*")', STORE,
    ),
    guard("path tricks", ARTIFACTS, r"{0,99}\Z", "{0,99}", STORE),
    guard("path tricks", ARTIFACTS, "[A-Za-z0-9][A-Za-z0-9._-]{0,99}", "[A-Za-z0-9._-]{1,100}", STORE),
    guard("path tricks", ARTIFACTS, "if _DIGEST.match(digest) is None:", "if False:", STORE),
    guard("path tricks", ARTIFACTS, "if _LEASE_FILE.match(lease_id) is None:", "if False:", STORE),
    guard("path tricks", SERVICE, "if request.codec != self._run.settings.codec:", "if False:", PATHS),
    guard("path tricks", TRANSFERS, "if not blocks.has(digest):", "if False:", PATHS),
    guard("path tricks", INVITES, "if len(name) > MAX_NAME_CHARACTERS or not", "if not", PATHS),
    guard(
        "path tricks", "barnraise/cli/links.py",
        'claimant = re.sub(r"[^A-Za-z0-9_.-]", "_", claimant or socket.gethostname())',
        "claimant = claimant or socket.gethostname()",
        "test_secrets.py::test_a_workers_name_claims_no_file_outside_of_the_folder",
    ),
    guard(
        "control characters", INVITES, "if len(name) > MAX_NAME_CHARACTERS or not name.isprintable():",
        "if len(name) > MAX_NAME_CHARACTERS:", CONTROL,
    ),
    guard("control characters", RPC, '"error": printable(str(error))', '"error": str(error)', CONTROL),
    guard("control characters", SERVICE, "got {request.codec[:32]!r}", "got {request.codec[:32]}", CONTROL),
    guard(
        "control characters", TRANSFERS, 'f"lease {lease_id[:64]!r} is not', 'f"lease {lease_id[:64]} is not', CONTROL,
    ),
    guard(
        "control characters", SERVICE, "printable(reason[:MAX_REASON_CHARACTERS])", "reason[:MAX_REASON_CHARACTERS]",
        CONTROL,
    ),
    guard(
        "control characters", "barnraise/cli/output.py", "' '.join(printable(sentence).split())", "sentence",
        "test_secrets.py::test_an_error_cannot_steer_the_terminal",
    ),
)  # fmt: skip

CONTENT: tuple[Guard, ...] = (*MESSAGES, *TRANSFER, *NAMES)
