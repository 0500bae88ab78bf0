"""Guards of the worker's edge, against a coordinator that lies."""

from __future__ import annotations

from tests.guards.guard import Cut, Guard, guard

LEASE = "worker/lease.py"
AGENT = "worker/agent.py"
BLOCKS = "worker/blocks.py"
CALLS = "worker/calls.py"
WIRE = "worker/wire.py"
CLIENT = "worker/client.py"
JOINING = "worker/joining.py"
FETCH = "worker/fetch.py"
FRAMING = "protocol/framing.py"
SEQUENCES = "protocol/sequences.py"
MANIFEST = "protocol/manifest.py"
CONFIG = "moe/config.py"
LIMITS = "protocol/limits.py"

RUN = "test_evil_identity.py::test_a_run_that_is_not_what_it_says_is_left"
LINK = "test_evil_identity.py::test_a_coordinator_that_the_join_link_does_not_name_is_left"
HUGE = "test_evil_identity.py::test_a_model_of_huge_shapes_costs_nothing"
ABSURD = "test_evil_leases.py::test_an_absurd_lease_is_refused_and_named"
NO_SPIN = "test_evil_leases.py::test_being_told_to_wait_no_time_for_ever_does_not_spin"
BEATS = "test_evil_leases.py::test_a_heartbeat_interval_that_is_none_is_replaced"
TERMINAL = "test_evil_leases.py::test_what_it_says_cannot_steer_the_terminal"
UNTRUE = "test_evil_manifests.py::test_a_manifest_that_does_not_hold_is_refused"
BOUND = "test_evil_manifests.py::test_a_block_above_the_runs_own_bound_is_not_fetched"
OLDER = "test_evil_manifests.py::test_an_older_version_than_leased_is_no_substitute"
BLOCK = "test_evil_manifests.py::test_a_block_that_is_not_what_was_signed_is_never_used"
NO_SEQUENCES = "test_evil_manifests.py::test_sequences_that_are_none_are_never_trained_on"
ENDLESS = "test_evil_streams.py::test_an_endless_stream_is_hung_up_on"
STALLED = "test_evil_streams.py::test_a_stalled_download_is_broken_off_and_taken_up_again"
FOR_EVER = "test_evil_streams.py::test_a_stream_that_stalls_for_ever_costs_the_lease_and_not_the_volunteer"
NOT_TAKEN = "test_evil_streams.py::test_an_upload_that_nobody_takes_is_broken_off_and_sent_again"
OVERSIZED = "test_evil_streams.py::test_an_oversized_or_compressed_reply_is_not_read"
COMPRESSED = "test_evil_streams.py::test_a_compressed_reply_is_not_unpacked"


def _bound(text: str, *cases: str) -> Guard:
    """One field's check in a lease."""
    tests = [f"{ABSURD}[{case}]" for case in cases]
    return guard("absurd hyperparameters, columns, counts, deadlines", LEASE, f"    {text}\n", "", *tests)


def _field(text: str, case: str, without: str = "") -> Guard:
    """One field's check in the run's description."""
    return guard("a description of the run that makes no sense", LEASE, f"    {text}\n", without, f"{RUN}[{case}]")


IDENTITY = (
    guard("not who the join link names", "protocol/bootstrap.py",
          "if hmac.compare_digest(got.encode(), expected):", "if True:", LINK),
    guard("not who the join link names", "worker/home.py", "if fingerprint_of(ca_pem) != fingerprint:", "if False:",
          LINK, also=(Cut(file="protocol/bootstrap.py", text="if hmac.compare_digest(got.encode(), expected):",
                          without="if True:"),), note="the certificate is looked at twice"),
    guard("a manifest key that the CA did not vouch for", JOINING,
          "        enrolment.check(self._link.fingerprint)\n", "",
          f"{RUN}[another manifest key]", f"{RUN}[no vouch]", f"{RUN}[vouch for another run]"),
    guard("a manifest key that the CA did not vouch for", "protocol/tls.py",
          'length_prefixed(b"manifest-key", run_id.encode(), manifest_public_key)',
          'length_prefixed(b"manifest-key", manifest_public_key)', f"{RUN}[vouch for another run]"),
    guard("a manifest key that the CA did not vouch for", "protocol/tls.py",
          'length_prefixed(b"manifest-key", run_id.encode(), manifest_public_key)',
          'length_prefixed(b"manifest-key", run_id.encode())', f"{RUN}[another manifest key]"),
    guard("a description of the run that makes no sense", JOINING,
          "if reply.worker_id != self._identity.worker_id:", "if False:", f"{RUN}[another worker]"),
    guard("a description of the run that makes no sense", JOINING,
          "if not (0 < len(reply.run_id) <= 128 and reply.run_id.isprintable()):", "if False:",
          f"{RUN}[enrolled in control characters]"),
    guard("a description of the run that makes no sense", CLIENT,
          'raise MalformedMessage(f"{name}: the reply is not a {reply.DESCRIPTOR.name}") from error', "raise",
          f"{RUN}[no reply]"),
    guard("a downgrade to another version", WIRE, '    "FAILED_PRECONDITION": Refused,\n', "",
          f"{RUN}[another version]"),
    guard("a description of the run that makes no sense", CLIENT,
          "if len(reply.session_id) != SESSION_ID_BYTES:", "if False:", f"{RUN}[no session]", f"{RUN}[long session]"),
    guard("a description of the run that makes no sense", JOINING,
          "if description.run_id != self.enrolment.run_id:", "if False:", f"{RUN}[another run]"),
    _field('_require(0 < len(message.run_id) <= 128 and message.run_id.isprintable(), "run_id", '
           '"1 to 128 characters", "?")', "run of control characters"),
    _field('_require(message.residency in RESIDENCIES, "residency", f"one of {RESIDENCIES}", '
           "printable(message.residency, 40))", "residency"),
    _field('_within(len(message.model_json), 2, MAX_MODEL_JSON_CHARS, "characters of model_json")', "long JSON"),
    _field('_within(message.sequence_length, 1, MAX_SEQUENCE_LENGTH, "sequence_length")', "sequence_length"),
    _field('_within(message.max_block_bytes, 1, MAX_BLOCK_BYTES, "max_block_bytes")', "max_block_bytes"),
    _field('_require(len(digest) == 64 and set(digest) <= HEX_DIGITS, "dataset_digest", '
           '"64 hexadecimal characters", "?")', "dataset"),
    guard("a description of the run that makes no sense", FETCH, "    codec_named(description.codec)\n", "",
          f"{RUN}[codec]"),
    guard("a description of the run that makes no sense", FETCH, "except (ValueError, RecursionError) as error:",
          "except ValueError as error:", f"{RUN}[deep JSON]"),
    guard("a description of the run that makes no sense", FETCH, "if not isinstance(values, dict):", "if False:",
          f"{RUN}[no object]"),
    guard("a description of the run that makes no sense", CONFIG,
          "if not isinstance(model_type, str) or model_type not in _OWN:", "if False:", f"{RUN}[architecture]"),
    guard("a description of the run that makes no sense", CONFIG, "if got != expected:", "if False:",
          f"{RUN}[unknown keys]"),
    guard("huge shapes", CONFIG, "if not self.low <= value <= self.high:", "if False:", f"{HUGE}[width]"),
    guard("huge shapes", CONFIG, "if experts > MAX_EXPERTS_IN_ALL:", "if False:", f"{HUGE}[experts]"),
    guard("huge shapes", "worker/machine/probe.py",
          '    if not fitting.fits:\n        raise ConfigError(f"this machine cannot',
          '    if False:\n        raise ConfigError(f"this machine cannot',
          f"{HUGE}[all of it]", f"{HUGE}[vocabulary]"),
)  # fmt: skip

LEASES = (
    _bound('_require(0 < len(message.lease_id) <= 64 and message.lease_id.isprintable(), "lease_id", '
           '"1 to 64 characters", "?")', "lease_id that is a path", "lease_id without end", "no lease_id"),
    _bound('_require(0 < len(columns) <= max_columns, "columns", f"1 to {max_columns} of them", len(columns))',
           "no columns"),
    guard("absurd hyperparameters, columns, counts, deadlines", LEASE, "0 < len(columns) <= max_columns",
          "0 < len(columns)", f"{ABSURD}[too many columns]",
          also=(Cut(file=LEASE, text="_require(ascending and columns", without="_require(columns"),),
          note="more columns than there are cannot be in order either"),
    guard("absurd hyperparameters, columns, counts, deadlines", LEASE, "_require(ascending and columns",
          "_require(columns", f"{ABSURD}[columns out of order]"),
    guard("absurd hyperparameters, columns, counts, deadlines", LEASE,
          "_require(ascending and columns[-1] < layout_columns", "_require(ascending",
          f"{ABSURD}[a column that is none]"),
    guard("absurd hyperparameters, columns, counts, deadlines", LEASE,
          "_require(math.isfinite(value) and low <= value <= high,", "_require(not (value < low or value > high),",
          f"{ABSURD}[no number]", note="comparisons that are written the other way round let NaN in"),
    _bound('_within(message.inner_steps, 1, MAX_INNER_STEPS, "inner_steps")', "inner_steps"),
    _bound('_within(message.batch_sequences, 1, MAX_BATCH_SEQUENCES, "batch_sequences")', "batch_sequences"),
    _bound('_within(message.warmup_steps, 0, MAX_INNER_STEPS, "warmup_steps")', "warmup_steps"),
    _bound('_require(message.data.count == wanted, "data.count", f"inner_steps x batch = {wanted}", '
           "message.data.count)", "data count"),
    _bound('_within(wanted * (sequence_length + 1), 1, MAX_LEASE_TOKENS, "tokens of the data range")',
           "all of the data"),
    _bound('_within(message.learning_rate, 1e-9, 1.0, "learning_rate")', "learning_rate", "no number"),
    _bound('_within(message.router_lr_scale, 0.0, 100.0, "router_lr_scale")', "router_lr_scale"),
    _bound('_within(message.weight_decay, 0.0, 10.0, "weight_decay")', "weight_decay"),
    _bound('_within(message.adam_beta1, 0.0, 1.0 - 1e-9, "adam_beta1")', "adam_beta1"),
    _bound('_within(message.adam_beta2, 0.0, 1.0 - 1e-9, "adam_beta2")', "adam_beta2"),
    _bound('_within(message.adam_eps, 1e-16, 1.0, "adam_eps")', "adam_eps"),
    _bound('_within(message.clip_norm, 1e-6, 1e6, "clip_norm")', "clip_norm"),
    _bound('_require(message.optimizer in OPTIMIZERS, "optimizer", f"one of {OPTIMIZERS}", '
           "printable(message.optimizer, 40))", "optimizer"),
    _bound('_within(message.muon_learning_rate, 1e-9, 1.0, "muon_learning_rate")', "muon_learning_rate"),
    _bound('_within(message.muon_momentum, 0.0, 1.0 - 1e-9, "muon_momentum")', "muon_momentum"),
    _bound('_within(message.ttl_s, 0.0, MAX_TTL_S, "ttl_s")', "ttl_s"),
    guard("being told to ask again at once, for ever", CALLS,
          "retry_s = retry_s if retry_s > MIN_RETRY_AFTER_S else MIN_RETRY_AFTER_S", "retry_s = max(retry_s, 0.0)",
          NO_SPIN),
    guard("a heartbeat interval that is no number, or none at all", AGENT,
          "interval_s = interval_s if interval_s > MIN_HEARTBEAT_S else MIN_HEARTBEAT_S",
          "interval_s = max(interval_s, 0.0)", BEATS),
    guard("text that steers the terminal", "worker/progress.py",
          "{printable(text, MAX_LINE_CHARACTERS)}\", file=self._stream", "{text}\", file=self._stream", TERMINAL),
    guard("text that steers the terminal", "worker/progress.py",
          "self._console.print(printable(text, MAX_LINE_CHARACTERS), ", "self._console.print(text, ", TERMINAL),
    guard("text that steers the terminal", CALLS, "reason=printable(reply.over.reason))", "reason=reply.over.reason)",
          TERMINAL),
    guard("text that steers the terminal", CALLS, "reply.verdicts[:MAX_VERDICTS]", "reply.verdicts", TERMINAL),
)  # fmt: skip

CONTENT = (
    guard("a wrong manifest signature, another run's manifest, another model, other sizes", FETCH,
          "        verify_manifest(self._enrolment.manifest_public_key, reply.manifest_json, reply.signature)\n", "",
          f"{UNTRUE}[another signer]", f"{UNTRUE}[signature of zeros]", f"{UNTRUE}[no signature]"),
    guard("a wrong manifest signature, another run's manifest, another model, other sizes", FETCH,
          "got = (manifest.run_id, ", "got = (expected[0], ", f"{UNTRUE}[run]"),
    guard("a downgrade to another version", FETCH, "manifest.run_id, manifest.version, ",
          "manifest.run_id, expected[1], ", f"{UNTRUE}[version]", OLDER),
    guard("a wrong manifest signature, another run's manifest, another model, other sizes", FETCH,
          "manifest.version, manifest.residency)", "manifest.version, expected[2])", f"{UNTRUE}[residency]"),
    guard("a wrong manifest signature, another run's manifest, another model, other sizes", FETCH,
          "if dict(manifest.model) != dict(run.layout.config_json):", "if False:", f"{UNTRUE}[model]"),
    guard("a wrong manifest signature, another run's manifest, another model, other sizes", FETCH,
          "if ref.payload_bytes != expected or", "if", f"{UNTRUE}[larger]", f"{UNTRUE}[smaller]"),
    guard("a wrong manifest signature, another run's manifest, another model, other sizes", FETCH,
          " or expected > run.description.max_block_bytes:", ":", BOUND),
    guard("a wrong manifest signature, another run's manifest, another model, other sizes", FETCH,
          "    if ref is None:\n", "    if False:\n", f"{UNTRUE}[no trunk]"),
    guard("a wrong manifest signature, another run's manifest, another model, other sizes", MANIFEST,
          "if not blocks or not set(momenta)", "if not set(momenta)", f"{UNTRUE}[no blocks]"),
    guard("a wrong manifest signature, another run's manifest, another model, other sizes", MANIFEST,
          "if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):", "if False:",
          f"{UNTRUE}[digest that is a path]"),
    guard("a block that does not match", BLOCKS, "if got != self._digest:", "if False:", BLOCK),
    guard("a block that does not match", FETCH, "        partial.finish()\n", "", BLOCK),
    guard("sequences that are none", SEQUENCES, "if largest >= vocab_size:", "if False:",
          f"{NO_SEQUENCES}[vocabulary]"),
    guard("sequences that are none", SEQUENCES, 'if magic != MAGIC or padding != b"\\0\\0\\0":', "if False:",
          f"{NO_SEQUENCES}[magic]"),
    guard("sequences that are none", SEQUENCES, "if (got_count, got_length) != (count, length):", "if False:",
          f"{NO_SEQUENCES}[count]"),
    guard("sequences that are none", SEQUENCES, "if payload.nbytes != expected_bytes:", "if False:",
          f"{NO_SEQUENCES}[short]"),
    guard("sequences that are none", SEQUENCES, "if payload.nbytes < HEADER.size:", "if False:",
          f"{NO_SEQUENCES}[less than a header]"),
    guard("sequences that are none", SEQUENCES, "if token_bytes not in _WIRE_DTYPES:", "if False:",
          f"{NO_SEQUENCES}[width of a token]"),
    guard("an endless stream", FRAMING, "if offset != self.offset:", "if False:",
          f"{ENDLESS}[block]", f"{ENDLESS}[lease_data]",
          also=(Cut(file=FRAMING, text="if offset + length > self.expected_size:", without="if False:"),
                Cut(file=FRAMING, text="if self._ended:", without="if False:")),
          note="a frame too many is out of place, or beyond the end, or after the last"),
    guard("a stalled stream", CLIENT, "asyncio.wait_for(anext(frames, None), self._stall_s)", "anext(frames, None)",
          STALLED),
    guard("a stalled stream", CLIENT, "if frames_sent() == before:", "if False:", NOT_TAKEN),
    guard("a stalled stream", AGENT,
          "call_later(lease.ttl_s, self._act, lease.lease_id)", "call_later(3600.0, self._act, lease.lease_id)",
          FOR_EVER),
    guard("oversized and compressed replies", LIMITS, '("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)',
          '("grpc.max_receive_message_length", -1)', OVERSIZED),
    guard("oversized and compressed replies", LIMITS,
          '    ("grpc.compression_enabled_algorithms_bitset", _IDENTITY_ONLY),\n', "", COMPRESSED),
)  # fmt: skip

WORKER: tuple[Guard, ...] = (*IDENTITY, *LEASES, *CONTENT)
