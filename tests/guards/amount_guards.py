"""Guards of the coordinator's edge against slowness and amount, and against services that nobody asked for."""

from __future__ import annotations

from tests.guards.guard import Guard, guard

LIMITS = "protocol/limits.py"
PACE = "coordinator/edge/patience.py"
THROTTLE = "coordinator/edge/throttle.py"
RPC = "coordinator/edge/rpc.py"
SERVER = "coordinator/edge/server.py"
RATES = "test_rates.py::"
CONNECTIONS = "test_connections.py::"
RESET = f"{CONNECTIONS}test_streams_opened_and_reset_at_once_harm_nobody"
NOT_TAKEN = f"{CONNECTIONS}test_a_call_whose_answer_is_never_taken_is_freed_at_its_deadline"
AGE = f"{CONNECTIONS}test_a_connection_is_replaced_at_its_age_and_nobody_notices"
NO_DEADLINE = f"{RATES}test_a_call_without_a_deadline_or_with_a_distant_one_is_refused"
NO_SERVICE = f"{CONNECTIONS}test_nothing_is_reflected_and_nothing_watched"

SLOWNESS = (
    guard("a slow upload", PACE, "by_rate_s = limits.grace_s + self._moved_bytes / limits.min_bytes_per_s",
          'by_rate_s = float("inf")', f"{RATES}test_an_upload_below_the_minimum_rate_is_broken_off"),
    guard("a slow upload", PACE, "return min(by_rate_s, limits.transfer_s) - self._waited_s",
          "return by_rate_s - self._waited_s", f"{RATES}test_an_upload_has_a_deadline_for_the_whole"),
    guard("a slow upload", PACE, "if self._left_s() < 0.0:", "if False:",
          f"{RATES}test_an_upload_below_the_minimum_rate_is_broken_off",
          f"{RATES}test_an_upload_has_a_deadline_for_the_whole"),
    guard("a slow upload", PACE, "min(left_s, limits.stall_s)", "left_s",
          f"{RATES}test_an_upload_that_stalls_is_broken_off_and_goes_on_later"),
    guard("a slow upload", "coordinator/edge/transfers.py", "await patience.wait(anext(frames, None))",
          "await anext(frames, None)",
          f"{RATES}test_an_upload_that_stalls_is_broken_off_and_goes_on_later",
          f"{RATES}test_an_upload_below_the_minimum_rate_is_broken_off"),
    guard("a slow read", RPC, "await patience.wait(self._context.write(message))", "await self._context.write(message)",
          f"{RATES}test_a_download_that_nobody_takes_is_broken_off",
          f"{RATES}test_a_download_below_the_minimum_rate_is_broken_off"),
    guard("a slow read", PACE, "by_rate_s = limits.grace_s + self._moved_bytes / limits.min_bytes_per_s",
          'by_rate_s = float("inf")', f"{RATES}test_a_download_below_the_minimum_rate_is_broken_off"),
    guard("a slow read", RPC, "self._context.add_done_callback(lambda _: release())", "pass", NOT_TAKEN),
    guard("a call that never says what it wants", RPC, "asyncio.wait_for(anext(self.messages, None), limit_s)",
          "anext(self.messages, None)", f"{RATES}test_a_call_that_never_says_what_it_wants_is_broken_off"),
    guard("a call without a deadline", RPC, "if left_s is None or left_s > most_time_left_s(longest_s):",
          "if left_s is not None and left_s > most_time_left_s(longest_s):", NO_DEADLINE),
    guard("a call without a deadline", RPC, "if left_s is None or left_s > most_time_left_s(longest_s):",
          "if left_s is None:", NO_DEADLINE),
    guard("a call without a deadline", RPC, "                call.check_deadline(longest_s)\n", "", NO_DEADLINE),
)  # fmt: skip

AMOUNT = (
    guard("registrations from one address", RPC, "            self._throttle.registration(call.address)\n", "",
          f"{RATES}test_registrations_from_one_address_are_limited"),
    guard("calls from one address", THROTTLE,
          '        _pass(self._calls.take(address), f"calls from {address}")\n', "",
          f"{RATES}test_calls_from_one_address_are_limited"),
    guard("calls from one address", THROTTLE, "if self._at_once[address] >= self.limits.calls_at_once:", "if False:",
          f"{RATES}test_calls_at_once_from_one_address_are_limited"),
    guard("calls and transfers of one worker", RPC,
          "                self._throttle.worker_call(session.worker)\n", "                pass\n",
          f"{RATES}test_calls_of_one_worker_are_limited_wherever_it_calls_from"),
    guard("calls and transfers of one worker", THROTTLE,
          "if self._streams[worker] >= self.limits.streams_at_once:", "if False:",
          f"{RATES}test_transfers_at_once_of_one_worker_are_limited"),
    guard("too many streams", LIMITS, '        ("grpc.max_concurrent_streams", MAX_CONCURRENT_STREAMS),\n', "",
          f"{CONNECTIONS}test_a_connection_has_only_so_many_streams"),
    guard("too many streams", RPC, "call.at_end(self._throttle.call(call.address))",
          "self._throttle.call(call.address)", RESET),
    guard("too many streams", THROTTLE, "                del counter[key]\n", "                pass\n", RESET,
          note="an entry for every address that ever called would be left"),
    guard("too many connections", LIMITS,
          '        ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),\n', "",
          f"{CONNECTIONS}test_only_so_many_connections_are_taken"),
    guard("a ping flood", LIMITS, '("grpc.http2.max_ping_strikes", MAX_PING_STRIKES)',
          '("grpc.http2.max_ping_strikes", 0)', f"{CONNECTIONS}test_a_ping_flood_is_hung_up_on",
          note="where none is named, gRPC counts strikes too: 0 is how it is told not to"),
    guard("a ping flood", LIMITS, '("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS)',
          '("grpc.http2.min_ping_interval_without_data_ms", 0)', f"{CONNECTIONS}test_a_ping_flood_is_hung_up_on"),
    guard("idle and old connections", LIMITS, '        ("grpc.max_connection_idle_ms", MAX_IDLE_CONNECTION_MS),\n', "",
          f"{CONNECTIONS}test_an_idle_connection_is_closed_and_a_busy_one_is_not"),
    guard("idle and old connections", LIMITS, '        ("grpc.max_connection_age_ms", MAX_CONNECTION_AGE_MS),\n', "",
          AGE),
    guard("idle and old connections", LIMITS,
          '        ("grpc.max_connection_age_grace_ms", MAX_CONNECTION_AGE_GRACE_MS),\n', "", AGE),
    guard("idle and old connections", LIMITS, '        ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_MS),\n',
          "", f"{CONNECTIONS}test_a_handshake_that_is_never_finished_is_hung_up_on"),
    guard("a log filled by refusals", RPC, "if not internal and not self._throttle.may_log():", "if False:",
          f"{RATES}test_refusals_cannot_flood_the_log"),
    guard("memory for callers without number", THROTTLE, "while len(self._buckets) > REMEMBERED_CALLERS:",
          "while False:", f"{RATES}test_callers_without_number_cost_bounded_memory"),
)  # fmt: skip

_CHECK = 'dict([health_calls.anonymous("Check", health_pb2.HealthCheckRequest, _check_health)])'
SERVICES = (
    guard("no reflection, no health stream", SERVER, _CHECK,
          "dict([health_calls.anonymous(name, health_pb2.HealthCheckRequest, _check_health)"
          ' for name in ("Check", "Watch")])',
          NO_SERVICE, note="planted: a second method of the health service"),
    guard("no reflection, no health stream", SERVER, f"            HEALTH_SERVICE: {_CHECK},\n",
          f"            HEALTH_SERVICE: {_CHECK},\n"
          '            "grpc.reflection.v1.ServerReflection": dict([health_calls.anonymous('
          '"ServerReflectionInfo", health_pb2.HealthCheckRequest, _check_health)]),\n',
          NO_SERVICE, note="planted: a service under the name of reflection"),
    guard("nothing without TLS", SERVER, 'self._grpc.add_secure_port(address_text(settings.host, port), credentials)',
          'self._grpc.add_insecure_port(address_text(settings.host, port))',
          f"{CONNECTIONS}test_without_tls_nobody_is_spoken_to"),
)  # fmt: skip

AMOUNTS: tuple[Guard, ...] = (*SLOWNESS, *AMOUNT, *SERVICES)
