"""Guards of the worker's edge, against a coordinator that lies."""

from __future__ import annotations

from tests.guards.cuts import always, becomes, dropped, never, planted
from tests.guards.guard import Guard, guard

RUN = "test_evil_identity.py::test_a_run_that_is_not_what_it_says_is_left"
LINK = "test_evil_identity.py::test_a_coordinator_that_the_join_link_does_not_name_is_left"
HUGE = "test_evil_identity.py::test_a_model_of_huge_shapes_costs_nothing"
ABSURD = "test_evil_leases.py::test_an_absurd_lease_is_refused_and_named"
NO_SPIN = "test_evil_leases.py::test_being_told_to_wait_no_time_for_ever_does_not_spin"
BEATS = "test_evil_leases.py::test_an_invalid_heartbeat_interval_is_replaced"
TERMINAL = "test_evil_leases.py::test_what_it_says_cannot_steer_the_terminal"
UNTRUE = "test_evil_manifests.py::test_a_manifest_that_does_not_hold_is_refused"
BOUND = "test_evil_manifests.py::test_a_block_above_the_runs_own_bound_is_not_fetched"
OLDER = "test_evil_manifests.py::test_an_older_version_than_leased_is_no_substitute"
BLOCK = "test_evil_manifests.py::test_a_block_that_is_not_what_was_signed_is_never_used"
NO_SEQUENCES = "test_evil_manifests.py::test_invalid_sequences_are_never_trained_on"
ENDLESS = "test_evil_streams.py::test_an_endless_stream_is_hung_up_on"
STALLED = "test_evil_streams.py::test_a_stalled_download_is_broken_off_and_taken_up_again"
FOR_EVER = "test_evil_streams.py::test_a_stream_that_stalls_for_ever_costs_the_lease_and_not_the_volunteer"
NOT_TAKEN = "test_evil_streams.py::test_an_upload_that_nobody_takes_is_broken_off_and_sent_again"
OVERSIZED = "test_evil_streams.py::test_an_oversized_or_compressed_reply_is_not_read"
COMPRESSED = "test_evil_streams.py::test_a_compressed_reply_is_not_unpacked"


def _bound(what: str, *cases: str) -> Guard:
    """One field's check in a lease."""
    tests = [f"{ABSURD}[{case}]" for case in cases]
    return guard("absurd hyperparameters, columns, counts, deadlines", dropped("worker", what), *tests)


def _recipe_bound(field: str) -> Guard:
    """One field's bounds in a recipe."""
    cut = planted("protocol.recipe:breaches", f"if field.name == {field!r}:\n    continue",
                  after="getattr(recipe, field.name), field.metadata")  # fmt: skip
    return guard("absurd hyperparameters, columns, counts, deadlines", cut, f"{ABSURD}[{field}]")


def _field(what: str, case: str) -> Guard:
    """One field's check in the run's description."""
    cut = dropped("worker:description_from_message", what)
    return guard("a description of the run that makes no sense", cut, f"{RUN}[{case}]")


IDENTITY = (
    guard("not who the join link names", always("protocol:_certificate", "hmac.compare_digest(got.encode(), expected)"),
          LINK),
    guard("not who the join link names", never("worker:Enrolment.check", "fingerprint_of(ca_pem) != fingerprint"), LINK,
          also=(always("protocol:_certificate", "hmac.compare_digest(got.encode(), expected)"),),
          note="the certificate is looked at twice"),
    guard("a manifest key that the CA did not vouch for", dropped("worker:Joining.enrol", "enrolment.check(...)"),
          f"{RUN}[another manifest key]", f"{RUN}[no vouch]", f"{RUN}[vouch for another run]"),
    guard("a manifest key that the CA did not vouch for", dropped("protocol:manifest_key_message", "run_id.encode()"),
          f"{RUN}[vouch for another run]"),
    guard("a manifest key that the CA did not vouch for", dropped("protocol:manifest_key_message",
          "manifest_public_key"), f"{RUN}[another manifest key]"),
    guard("a description of the run that makes no sense", never("worker:Joining.enrol",
          "reply.worker_id not in (self._identity.worker_id, self.home.former_worker())"), f"{RUN}[another worker]"),
    guard("a description of the run that makes no sense", never("worker:Joining.enrol",
          "not (0 < len(reply.run_id) <= 128 and reply.run_id.isprintable())"),
          f"{RUN}[enrolled in control characters]"),
    guard("a description of the run that makes no sense", becomes("worker:CoordinatorClient._call",
          "raise MalformedMessage(...) from _", "raise"), f"{RUN}[no reply]"),
    guard("a downgrade to another version", dropped("worker:_BLAME", "'FAILED_PRECONDITION'"),
          f"{RUN}[another version]"),
    guard("a description of the run that makes no sense", never("worker:CoordinatorClient.open_session",
          "len(reply.session_id) != SESSION_ID_BYTES"), f"{RUN}[no session]", f"{RUN}[long session]"),
    guard("a description of the run that makes no sense", never("worker:Joining.open",
          "description.run_id != self.enrolment.run_id"), f"{RUN}[another run]"),
    _field('_require(..., "run_id", ...)', "run of control characters"),
    _field('_require(..., "residency", ...)', "residency"),
    _field('_within(..., "characters of model_json")', "long JSON"),
    _field('_within(..., "sequence_length")', "sequence_length"),
    _field('_within(..., "max_block_bytes")', "max_block_bytes"),
    _field('_require(..., "dataset_digest", ...)', "dataset"),
    guard("a description of the run that makes no sense", dropped("worker:understand_run", "codec_named(...)"),
          f"{RUN}[codec]"),
    guard("a description of the run that makes no sense", becomes("worker:understand_run",
          "(ValueError, RecursionError)", "ValueError"), f"{RUN}[deep JSON]"),
    guard("a description of the run that makes no sense", never("worker:understand_run",
          "not isinstance(values, dict)"), f"{RUN}[no object]"),
    guard("a description of the run that makes no sense", never("moe:_problem",
          "not isinstance(model_type, str) or model_type not in FAMILIES"), f"{RUN}[architecture]"),
    guard("a description of the run that makes no sense", never("moe:_problem", "got != expected"),
          f"{RUN}[unknown keys]"),
    guard("huge shapes", never("moe:Key._problem_of_one", "not self.low <= value <= self.high"), f"{HUGE}[width]"),
    guard("huge shapes", never("moe:_relation_problem", "in_all_experts > MAX_EXPERTS_IN_ALL"), f"{HUGE}[experts]"),
    guard("huge shapes", never("worker:columns_that_fit", "not fitting.fits",
          says="this machine cannot train this model:"), f"{HUGE}[all of it]", f"{HUGE}[vocabulary]"),
)  # fmt: skip

LEASES = (
    _bound('_require(..., "lease_id", ...)', "lease_id that is a path", "lease_id without end", "no lease_id"),
    _bound("_require(..., 0 < len(columns) <= max_columns, ...)", "no columns"),
    guard("absurd hyperparameters, columns, counts, deadlines",
          becomes("worker:lease_from_message", "0 < len(columns) <= max_columns", "0 < len(columns)"),
          f"{ABSURD}[too many columns]", also=(dropped("worker:lease_from_message", "ascending"),),
          note="more columns than there are cannot be in order either"),
    guard("absurd hyperparameters, columns, counts, deadlines",
          dropped("worker:lease_from_message", "ascending"),
          f"{ABSURD}[columns out of order]"),
    guard("absurd hyperparameters, columns, counts, deadlines",
          dropped("worker:lease_from_message", "columns[-1] < layout_columns"),
          f"{ABSURD}[an invalid column]"),
    guard("absurd hyperparameters, columns, counts, deadlines", becomes("worker:_within",
          "math.isfinite(value) and low <= value <= high", "not (value < low or value > high)"), f"{ABSURD}[no time]",
          note="comparisons that are written the other way round let NaN in"),
    _bound('_within(..., "inner_steps")', "inner_steps"),
    _bound('_within(..., "batch_sequences")', "batch_sequences"),
    _recipe_bound("warmup_steps"),
    _bound('_require(..., "data.count", ...)', "data count"),
    _bound('_within(..., "tokens of the data range")', "all of the data"),
    _recipe_bound("learning_rate"),
    _recipe_bound("router_lr_scale"),
    _recipe_bound("weight_decay"),
    _recipe_bound("adam_beta1"),
    _recipe_bound("adam_beta2"),
    _recipe_bound("adam_eps"),
    _recipe_bound("clip_norm"),
    _recipe_bound("selection_bias_rate"),
    guard("absurd hyperparameters, columns, counts, deadlines", becomes("protocol.recipe:breaches",
          'not bounds["low"] <= value <= bounds["high"]',
          'value < bounds["low"] or value > bounds["high"]'), f"{ABSURD}[no number]",
          note="comparisons that are written the other way round let NaN in"),
    guard("absurd hyperparameters, columns, counts, deadlines",
          becomes("worker", "breaches(message.recipe)", "()"), f"{ABSURD}[learning_rate]"),
    _recipe_bound("optimizer"),
    _recipe_bound("masters"),
    _recipe_bound("moments"),
    _recipe_bound("trunk"),
    _recipe_bound("lora_rank"),
    _recipe_bound("lora_lr_scale"),
    _recipe_bound("clipping"),
    _recipe_bound("muon_learning_rate"),
    _recipe_bound("muon_momentum"),
    _bound('_within(..., "ttl_s")', "ttl_s"),
    guard("being told to ask again at once, for ever", becomes("worker:Calls._acquire",
          "retry_s if retry_s > MIN_RETRY_AFTER_S else MIN_RETRY_AFTER_S", "max(retry_s, 0.0)"), NO_SPIN),
    guard("a heartbeat interval that is missing or not a number", becomes("worker:Agent._start_beating",
          "interval_s if interval_s > MIN_HEARTBEAT_S else MIN_HEARTBEAT_S", "max(interval_s, 0.0)"), BEATS),
    guard("text that steers the terminal", becomes("worker:PlainReporter.say", "printable(text, MAX_LINE_CHARACTERS)",
          "text"), TERMINAL),
    guard("text that steers the terminal", becomes("worker:LiveReporter.say", "printable(text, MAX_LINE_CHARACTERS)",
          "text"), TERMINAL),
    guard("text that steers the terminal", becomes("worker:Calls._acquire", "printable(reply.over.reason)",
          "reply.over.reason"), TERMINAL),
    guard("text that steers the terminal", becomes("worker:Calls._acquire", "reply.verdicts[:MAX_VERDICTS]",
          "reply.verdicts"), TERMINAL),
)  # fmt: skip

CONTENT = (
    guard("a wrong manifest signature, another run's manifest, another model, other sizes",
          dropped("worker:Fetcher._manifest", "verify_manifest(...)"), f"{UNTRUE}[another signer]",
          f"{UNTRUE}[signature of zeros]", f"{UNTRUE}[no signature]"),
    guard("a wrong manifest signature, another run's manifest, another model, other sizes",
          becomes("worker:Fetcher._manifest", "manifest.run_id", "expected[0]"), f"{UNTRUE}[run]"),
    guard("a downgrade to another version", becomes("worker:Fetcher._manifest",
          "(manifest.run_id, manifest.version, manifest.residency)",
          "(manifest.run_id, expected[1], manifest.residency)"), f"{UNTRUE}[version]", OLDER),
    guard("a wrong manifest signature, another run's manifest, another model, other sizes",
          becomes("worker:Fetcher._manifest", "manifest.residency", "expected[2]"), f"{UNTRUE}[residency]"),
    guard("a wrong manifest signature, another run's manifest, another model, other sizes",
          never("worker:Fetcher._manifest", "dict(manifest.model) != dict(run.layout.config_json)"),
          f"{UNTRUE}[model]"),
    guard("a wrong manifest signature, another run's manifest, another model, other sizes",
          dropped("worker:checked_ref", "ref.payload_bytes != expected"), f"{UNTRUE}[larger]", f"{UNTRUE}[smaller]"),
    guard("a wrong manifest signature, another run's manifest, another model, other sizes",
          dropped("worker:checked_ref", "expected > run.description.max_block_bytes"), BOUND),
    guard("a wrong manifest signature, another run's manifest, another model, other sizes", never("worker:checked_ref",
          "ref is None"), f"{UNTRUE}[no trunk]"),
    guard("a wrong manifest signature, another run's manifest, another model, other sizes",
          dropped("protocol:_from_fields", "not blocks"), f"{UNTRUE}[no blocks]"),
    guard("a wrong manifest signature, another run's manifest, another model, other sizes", never("protocol:_digest",
          "not isinstance(value, str) or not _DIGEST.fullmatch(value)"), f"{UNTRUE}[digest that is a path]"),
    guard("a block that does not match", never("protocol:FrameReader.finish",
          "not hmac.compare_digest(got.encode(), self.digest.encode())"), BLOCK),
    guard("a block that does not match", never("worker:PartialBlock.finish", "got != self._digest"), BLOCK),
    guard("a block that does not match", dropped("worker.fetch", "partial.finish()"), BLOCK),
    guard("invalid sequences", never("protocol:decode_sequences", "largest >= vocab_size"),
          f"{NO_SEQUENCES}[vocabulary]"),
    guard("invalid sequences", never("protocol:_checked_header", r"magic != MAGIC or padding != b'\x00\x00\x00'"),
          f"{NO_SEQUENCES}[magic]"),
    guard("invalid sequences", never("protocol:_checked_header", "(got_count, got_length) != (count, length)"),
          f"{NO_SEQUENCES}[count]"),
    guard("invalid sequences", never("protocol:_checked_header", "payload.nbytes != expected_bytes"),
          f"{NO_SEQUENCES}[short]"),
    guard("invalid sequences", never("protocol:_checked_header", "payload.nbytes < HEADER.size"),
          f"{NO_SEQUENCES}[less than a header]"),
    guard("invalid sequences", never("protocol:_checked_header", "token_bytes not in _WIRE_DTYPES"),
          f"{NO_SEQUENCES}[width of a token]"),
    guard("an endless stream", never("protocol:FrameReader.feed", "offset != self.offset"), f"{ENDLESS}[block]",
          f"{ENDLESS}[lease_data]", also=(never("protocol:FrameReader.feed", "offset + length > self.expected_size"),
          never("protocol:FrameReader.feed", "self._ended")),
          note="a frame too many is out of place, or beyond the end, or after the last"),
    guard("a stalled stream", becomes("worker:CoordinatorClient._frames",
          "asyncio.timeout(self._stall_s)", "asyncio.timeout(None)"), STALLED),
    guard("a stalled stream", never("worker:CoordinatorClient._unless_stalled", "frames_sent() == before"), NOT_TAKEN),
    guard("a stalled stream", becomes("worker.deadline", "_.call_later(lease.ttl_s, self._act, lease.lease_id)",
          "asyncio.get_running_loop().call_later(3600.0, self._act, lease.lease_id)"), FOR_EVER),
    guard("oversized and compressed replies", becomes("protocol:_BOTH_SIDES", '("grpc.max_receive_message_length", _)',
          '("grpc.max_receive_message_length", -1)'), OVERSIZED),
    guard("oversized and compressed replies", dropped("protocol:_BOTH_SIDES",
          '("grpc.compression_enabled_algorithms_bitset", _)'), COMPRESSED),
)  # fmt: skip

WORKER: tuple[Guard, ...] = (*IDENTITY, *LEASES, *CONTENT)
