"""Guards of the coordinator's edge that look at what is in a message: sizes, numbers, tensors, frames, names."""

from __future__ import annotations

from tests.guards.cuts import always, becomes, dropped, never, planted, unquoted
from tests.guards.guard import Guard, guard

NUMBERS = "test_content.py::test_invalid_numbers_are_refused_or_ignored"
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
    guard("an oversized message", becomes("protocol:_BOTH_SIDES", '("grpc.max_receive_message_length", _)',
          '("grpc.max_receive_message_length", -1)'),
          "test_content.py::test_an_oversized_message_is_refused_before_it_is_read"),
    guard("oversized metadata", becomes("protocol:_BOTH_SIDES", '("grpc.max_metadata_size", _)',
          '("grpc.max_metadata_size", 1 << 20)'), "test_content.py::test_oversized_metadata_is_refused",
          also=(becomes("protocol:_BOTH_SIDES", '("grpc.absolute_max_metadata_size", _)',
          '("grpc.absolute_max_metadata_size", 1 << 20)'),),
          note="gRPC has limits of its own where none is named, so the option is widened instead of left out"),
    guard("a decompression bomb", dropped("protocol:_BOTH_SIDES", '("grpc.compression_enabled_algorithms_bitset", _)'),
          "test_content.py::test_a_decompression_bomb_is_not_unpacked"),
    guard("bytes that are no request", becomes("coordinator.edge:parse", "raise MalformedMessage(...) from _", "raise"),
          "test_content.py::test_bytes_that_are_no_request_are_refused",
          "test_content.py::test_bytes_that_are_no_registration_are_refused"),
    guard("NaN and infinity in any number", never("coordinator:WorkerService._check_submission",
          "not math.isfinite(getattr(request, name))"), NUMBERS),
    guard("NaN and infinity in any number", becomes("coordinator:WorkerService.heartbeat",
          "request.train_loss if math.isfinite(request.train_loss) else None", "request.train_loss"), NUMBERS),
    guard("NaN and infinity in any number", becomes("coordinator:WorkerService.heartbeat",
          "request.tokens_per_s if math.isfinite(request.tokens_per_s) else 0.0", "request.tokens_per_s"), NUMBERS),
    guard("NaN and infinity in any number", becomes("coordinator:WorkerService.acquire_lease",
          "min(max(request.wait_s, 0.0), MAX_WAIT_S) if math.isfinite(request.wait_s) else 0.0",
          "min(max(request.wait_s, 0.0), MAX_WAIT_S)"), NUMBERS),
    guard("NaN and infinity in any number", never("coordinator.edge:speed_of",
          "not math.isfinite(speed) or not 0.0 <= speed <= MAX_TOKENS_PER_S"), NUMBERS,
          note="either half refuses what is not a number"),
    guard("NaN and infinity in any number", becomes("coordinator.edge:worker_status", "fresh.train_loss",
          'float("inf")'), "test_content.py::test_status_stays_json_whatever_a_heartbeat_says", NUMBERS,
          also=(planted("coordinator:RunStatus", 'model_config = ConfigDict(ser_json_inf_nan="constants")'),
          planted("coordinator:WorkerStatus", 'model_config = ConfigDict(ser_json_inf_nan="constants")')),
          note="planted: a status with infinity in it, written as such"),
)  # fmt: skip

TRANSFER = (
    guard("another digest", never("protocol:FrameReader.finish",
          "not hmac.compare_digest(got.encode(), self.digest.encode())"), OTHER_BYTES),
    guard("another digest", dropped("coordinator:Transfers._finish", "self._run.store.drop_upload(...)"), OTHER_BYTES),
    guard("another shape, dtype or order", dropped("protocol:_each", "source.read(0, len(header)) != header"),
          f"{OTHER_TENSORS}[shape]", f"{OTHER_TENSORS}[dtype]", f"{OTHER_TENSORS}[order]"),
    guard("another shape, dtype or order", never("protocol:_entry_difference",
          'entry.get("dtype") != wire.dtype'), f"{OTHER_TENSORS}[dtype]"),
    guard("another shape, dtype or order", never("protocol:_entry_difference",
          'entry.get("shape") != list(wire.shape)'), f"{OTHER_TENSORS}[shape]"),
    guard("NaN and infinity", never("coordinator:Executor._block_norms", "not math.isfinite(norm_l2)"),
          "test_content.py::test_tensors_that_are_not_finite_are_rejected", also=(never("coordinator.engine:judge",
          "not math.isfinite(norm.norm_l2)"),),
          note="what measures a submission and what judges the measure both refuse it"),
    guard("offsets and sizes out of range", never("coordinator:Transfers._committed_record",
          "header.offset > header.payload_bytes"), OFFSETS),
    guard("offsets and sizes out of range", never("coordinator:ArtifactStore.open_upload", "offset > have"), OFFSETS),
    guard("offsets and sizes out of range", never("protocol:frames_of", "not 0 <= offset <= size"), OFFSETS),
    guard("offsets and sizes out of range", never("coordinator:WorkerService._check_submission",
          "request.payload_bytes != expected"), OFFSETS),
    guard("offsets and sizes out of range", never("coordinator:WorkerService._check_submission",
          "request.micro_batch > lease.batch_sequences"),
          "test_content.py::test_a_micro_batch_larger_than_the_batch_is_refused"),
    guard("offsets and sizes out of range", dropped("coordinator:Transfers._committed_record",
          "record.payload_bytes != header.payload_bytes"), OFFSETS),
    guard("bad, short or surplus frames", never("protocol:FrameReader.feed", "len(frame) < FRAME_HEADER_BYTES"),
          f"{BAD_FRAME}[no header]"),
    guard("bad, short or surplus frames", never("protocol:FrameReader.feed", "magic != _MAGIC"), f"{BAD_FRAME}[magic]"),
    guard("bad, short or surplus frames", becomes("protocol:FrameReader.feed", "0 < length <= self._frame_bytes",
          "0 <= length <= self._frame_bytes"), f"{BAD_FRAME}[empty]"),
    guard("bad, short or surplus frames", becomes("protocol:FrameReader.feed", "0 < length <= self._frame_bytes",
          "0 < length"), f"{BAD_FRAME}[too long]"),
    guard("bad, short or surplus frames", never("protocol:FrameReader.feed",
          "len(frame) != FRAME_HEADER_BYTES + length"), f"{BAD_FRAME}[another length]"),
    guard("bad, short or surplus frames", becomes("protocol:FrameReader.feed", "not 0 < length <= self._frame_bytes",
          "length == 0"), f"{BAD_FRAME}[huge length]", also=(never("protocol:FrameReader.feed",
          "len(frame) != FRAME_HEADER_BYTES + length"),), note="either refuses a length that is not there"),
    guard("bad, short or surplus frames", never("protocol:FrameReader.feed", "offset != self.offset"),
          f"{BAD_FRAME}[later]", f"{BAD_FRAME}[huge offset]"),
    guard("bad, short or surplus frames", never("protocol:FrameReader.feed", "offset + length > self.expected_size"),
          DRIBBLED),
    guard("bad, short or surplus frames", never("protocol:FrameReader.feed", "self._ended"), DRIBBLED),
    guard("a truncated upload", never("coordinator:Transfers.upload", "not reader.complete"), TRUNCATED),
    guard("a truncated upload", always("coordinator:Transfers._take", "reader.complete"), TRUNCATED),
    guard("a truncated upload", becomes("coordinator:Transfers._opened_upload", "reader.skip(piece)",
          "reader._hashed_bytes += len(piece)"), TRUNCATED,
          note="what came before the break is part of the digest too"),
)  # fmt: skip

NAMES = (
    guard("path tricks", never("coordinator.edge:digest_from", "len(digest) != 32"), PATHS),
    guard("path tricks", becomes("coordinator:_DIGEST", r"'[0-9a-f]{64}\\Z'", '".*"'), STORE),
    guard("path tricks", becomes("coordinator:_DIGEST", r"'[0-9a-f]{64}\\Z'", '"[0-9a-f]{64}"'), STORE),
    guard("path tricks", becomes("coordinator:_LEASE_FILE", r"'[A-Za-z0-9][A-Za-z0-9._-]{0,99}\\Z'", '".*"'), STORE),
    guard("path tricks", becomes("coordinator:_LEASE_FILE", r"'[A-Za-z0-9][A-Za-z0-9._-]{0,99}\\Z'",
          '"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"'), STORE),
    guard("path tricks", becomes("coordinator:_LEASE_FILE", r"'[A-Za-z0-9][A-Za-z0-9._-]{0,99}\\Z'",
          r"'[A-Za-z0-9._-]{1,100}\\Z'"), STORE),
    guard("path tricks", never("coordinator.store.ports:require_digest", "_DIGEST.match(digest) is None"), STORE),
    guard("path tricks", never("coordinator:ArtifactStore._upload_path", "_LEASE_FILE.match(lease_id) is None"), STORE),
    guard("path tricks", never("coordinator:WorkerService._check_submission",
          "request.codec != lease.codec"), PATHS),
    guard("path tricks", never("coordinator:Transfers._block_frames", "not blocks.has(digest)"), PATHS,
          also=(never("coordinator:Transfers._block_frames", "not self._run.versions.is_served(digest)"),)),
    guard("path tricks", dropped("coordinator.store:clean_name", "len(name) > MAX_NAME_CHARACTERS"), PATHS),
    guard("path tricks", becomes("barnraise:claim_link", 're.sub(_, "_", claimant or socket.gethostname())',
          "claimant or socket.gethostname()"),
          "test_secrets.py::test_a_workers_name_claims_no_file_outside_of_the_folder"),
    guard("control characters", dropped("coordinator.store:clean_name", "not name.isprintable()"), CONTROL),
    guard("control characters", never("coordinator:WorkerService._check_submission",
          "not is_arithmetic(request.arithmetic)"),
          "test_content.py::test_an_arithmetic_class_is_short_and_printable"),
    guard("control characters", becomes("coordinator:Endpoint._log_refusal", "printable(str(error))", "str(error)"),
          CONTROL),
    guard("control characters", unquoted("coordinator:WorkerService._check_submission", "request.codec[:32]"), CONTROL),
    guard("control characters", unquoted("coordinator:Transfers._data_of", "lease_id[:64]"), CONTROL),
    guard("control characters", becomes("coordinator.edge:clean_reason", "printable(reason[:MAX_REASON_CHARACTERS])",
          "reason[:MAX_REASON_CHARACTERS]"), CONTROL),
    guard("control characters", becomes("barnraise:_say", '" ".join(printable(sentence).split())', "sentence"),
          "test_secrets.py::test_an_error_cannot_steer_the_terminal"),
)  # fmt: skip

CONTENT: tuple[Guard, ...] = (*MESSAGES, *TRANSFER, *NAMES)
