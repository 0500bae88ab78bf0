"""Guards of the coordinator's edge against slowness and amount, and against services that nobody asked for."""

from __future__ import annotations

from tests.guards.cuts import becomes, dropped, never, planted
from tests.guards.guard import Guard, guard

RATES = "test_rates.py::"
CONNECTIONS = "test_connections.py::"
RESET = f"{CONNECTIONS}test_streams_opened_and_reset_at_once_harm_nobody"
NOT_TAKEN = f"{CONNECTIONS}test_a_call_whose_answer_is_never_taken_is_freed_at_its_deadline"
AGE = f"{CONNECTIONS}test_a_connection_is_replaced_at_its_age_and_nobody_notices"
NO_DEADLINE = f"{RATES}test_a_call_without_a_deadline_or_with_a_distant_one_is_refused"
NO_SERVICE = f"{CONNECTIONS}test_nothing_is_reflected_and_nothing_watched"

SLOWNESS = (
    guard("a slow upload", becomes("coordinator:Patience._left_s",
          "limits.grace_s + self._moved_bytes / limits.min_bytes_per_s", 'float("inf")'),
          f"{RATES}test_an_upload_below_the_minimum_rate_is_broken_off"),
    guard("a slow upload", becomes("coordinator:Patience._left_s", "min(by_rate_s, limits.transfer_s)", "by_rate_s"),
          f"{RATES}test_an_upload_has_a_deadline_for_the_whole"),
    guard("a slow upload", never("coordinator:Patience.wait", "self._left_s() < 0.0"),
          f"{RATES}test_an_upload_below_the_minimum_rate_is_broken_off",
          f"{RATES}test_an_upload_has_a_deadline_for_the_whole"),
    guard("a slow upload", becomes("coordinator:Patience.wait", "min(left_s, limits.stall_s)", "left_s"),
          f"{RATES}test_an_upload_that_stalls_is_broken_off_and_goes_on_later"),
    guard("a slow upload", becomes("coordinator:Transfers._receive", "patience.wait(anext(frames, None))",
          "anext(frames, None)"), f"{RATES}test_an_upload_that_stalls_is_broken_off_and_goes_on_later",
          f"{RATES}test_an_upload_below_the_minimum_rate_is_broken_off"),
    guard("a slow read", becomes("coordinator:ServedCall.write", "patience.wait(self._context.write(message))",
          "self._context.write(message)"), f"{RATES}test_a_download_that_nobody_takes_is_broken_off",
          f"{RATES}test_a_download_below_the_minimum_rate_is_broken_off"),
    guard("a slow read", becomes("coordinator:Patience._left_s",
          "limits.grace_s + self._moved_bytes / limits.min_bytes_per_s", 'float("inf")'),
          f"{RATES}test_a_download_below_the_minimum_rate_is_broken_off"),
    guard("a slow read", dropped("coordinator:ServedCall.at_end", "self._context.add_done_callback(...)"), NOT_TAKEN),
    guard("a call that never says what it wants", becomes("coordinator:ServedCall.opening",
          "asyncio.wait_for(anext(self.messages, None), limit_s)", "anext(self.messages, None)"),
          f"{RATES}test_a_call_that_never_says_what_it_wants_is_broken_off"),
    guard("a call without a deadline", becomes("coordinator:ServedCall.check_deadline",
          "left_s is None or left_s > most_time_left_s(longest_s)",
          "left_s is not None and left_s > most_time_left_s(longest_s)"), NO_DEADLINE),
    guard("a call without a deadline", dropped("coordinator:ServedCall.check_deadline",
          "left_s > most_time_left_s(longest_s)"), NO_DEADLINE),
    guard("a call without a deadline", dropped("coordinator:Endpoint._handler.guarded", "call.check_deadline(...)"),
          NO_DEADLINE),
)  # fmt: skip

AMOUNT = (
    guard("registrations from one address", dropped("coordinator:Endpoint.keyed.handle",
          "self._throttle.registration(...)"), f"{RATES}test_registrations_from_one_address_are_limited"),
    guard("calls from one address", dropped("coordinator:Throttle.call", "_pass(...)"),
          f"{RATES}test_calls_from_one_address_are_limited"),
    guard("calls from one address", never("coordinator:Throttle.call",
          "self._at_once[address] >= self.limits.calls_at_once"),
          f"{RATES}test_calls_at_once_from_one_address_are_limited"),
    guard("calls and transfers of one worker", dropped("coordinator:Endpoint.unary.handle",
          "self._throttle.worker_call(...)"), f"{RATES}test_calls_of_one_worker_are_limited_wherever_it_calls_from"),
    guard("calls and transfers of one worker", never("coordinator:Throttle.stream",
          "self._streams[worker] >= self.limits.streams_at_once"),
          f"{RATES}test_transfers_at_once_of_one_worker_are_limited"),
    guard("too many streams", dropped("protocol:server_options", '("grpc.max_concurrent_streams", _)'),
          f"{CONNECTIONS}test_a_connection_has_only_so_many_streams"),
    guard("too many streams", becomes("coordinator:Endpoint._handler.guarded",
          "call.at_end(self._throttle.call(call.address))", "self._throttle.call(call.address)"), RESET),
    guard("too many streams", dropped("coordinator.edge:_counted", "del counter[key]"), RESET,
          note="an entry for every address that ever called would be left"),
    guard("too many connections", dropped("protocol:server_options", '("grpc.max_allowed_incoming_connections", _)'),
          f"{CONNECTIONS}test_only_so_many_connections_are_taken"),
    guard("a ping flood", becomes("protocol:server_options", '("grpc.http2.max_ping_strikes", _)',
          '("grpc.http2.max_ping_strikes", 0)'), f"{CONNECTIONS}test_a_ping_flood_is_hung_up_on",
          note="where none is named, gRPC counts strikes too: 0 is how it is told not to"),
    guard("a ping flood", becomes("protocol:server_options", '("grpc.http2.min_ping_interval_without_data_ms", _)',
          '("grpc.http2.min_ping_interval_without_data_ms", 0)'), f"{CONNECTIONS}test_a_ping_flood_is_hung_up_on"),
    guard("idle and old connections", dropped("protocol:server_options", '("grpc.max_connection_idle_ms", _)'),
          f"{CONNECTIONS}test_an_idle_connection_is_closed_and_a_busy_one_is_not"),
    guard("idle and old connections", dropped("protocol:server_options", '("grpc.max_connection_age_ms", _)'), AGE),
    guard("idle and old connections", dropped("protocol:server_options", '("grpc.max_connection_age_grace_ms", _)'),
          AGE),
    guard("idle and old connections", dropped("protocol:server_options", '("grpc.server_handshake_timeout_ms", _)'),
          f"{CONNECTIONS}test_a_handshake_that_is_never_finished_is_hung_up_on"),
    guard("a log filled by refusals", never("coordinator:Endpoint._log_refusal",
          "not internal and (not self._throttle.may_log())"), f"{RATES}test_refusals_cannot_flood_the_log"),
    guard("memory for callers without number", never("coordinator:Buckets.take",
          "len(self._buckets) > self._most"), f"{RATES}test_callers_without_number_cost_bounded_memory"),
)  # fmt: skip

SERVICES = (
    guard("no reflection, no health stream", becomes("coordinator:CoordinatorServer._add_services",
          '[health_calls.anonymous("Check", health_pb2.HealthCheckRequest, partial(check_health, run.pump.engine))]',
          "[health_calls.anonymous(name, health_pb2.HealthCheckRequest, partial(check_health, run.pump.engine))"
          ' for name in ("Check", "Watch")]'),
          NO_SERVICE, note="planted: a second method of the health service"),
    guard("no reflection, no health stream", planted("coordinator:CoordinatorServer._add_services",
          'handlers["grpc.reflection.v1.ServerReflection"] = dict('
          '[health_calls.anonymous("ServerReflectionInfo", health_pb2.HealthCheckRequest, '
          "partial(check_health, run.pump.engine))])",
          before="handlers.items()"), NO_SERVICE, note="planted: a service under the name of reflection"),
    guard("nothing without TLS", becomes("coordinator:CoordinatorServer._listen",
          "self._grpc.add_secure_port(address_text(settings.host, port), credentials)",
          "self._grpc.add_insecure_port(address_text(settings.host, port))"),
          f"{CONNECTIONS}test_without_tls_nobody_is_spoken_to"),
)  # fmt: skip

AMOUNTS: tuple[Guard, ...] = (*SLOWNESS, *AMOUNT, *SERVICES)
