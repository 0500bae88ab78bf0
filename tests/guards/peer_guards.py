"""Guards between workers: who is given a block, what a holder is believed, whose record of a run holds."""

from __future__ import annotations

from tests.guards.cuts import becomes, dropped, never
from tests.guards.guard import Guard, guard

LINE = "tests/peering/test_line.py::"
RECORD = "tests/peering/test_record.py::"
NO_TICKET = f"{LINE}test_whoever_has_no_ticket_of_this_run_gets_nothing"
FOR_EVER = f"{LINE}test_a_ticket_for_ever_is_none"
PASSED_ON = f"{LINE}test_a_proof_cannot_be_passed_on"
ONE_CALL = f"{LINE}test_a_proof_is_for_one_call_one_block_and_one_place_in_it"
ONE_KEY = f"{LINE}test_a_third_one_at_once_and_a_second_of_one_key_are_told_to_come_again"
CHECKED = "tests/worker/test_peers_served.py::test_only_what_this_process_checked_is_given"
GIVEN = "tests/worker/rules/test_traffic.py::test_what_is_given_is_slowed_and_counted_and_work_goes_before_it"
SERVED = "tests/worker/test_peers_served.py::test_what_goes_between_workers_counts_and_ends_with_a_pause"
KEPT = (
    "tests/coordinator/test_archives.py"
    "::test_momentum_and_companions_are_for_those_that_archive_and_no_more_of_them_than_is_set"
)
SIZES = "tests/worker/test_archivist.py::test_sizes_are_looked_at_before_a_byte_is_fetched"
CHUNK = "tests/worker/test_chunked.py::test_a_lie_in_one_chunk_costs_that_chunk"
LIST = "tests/worker/test_chunked.py::test_a_list_counts_only_where_it_is_as_long_as_the_block"
HOME = "tests/worker/test_swarm.py::test_a_holder_at_home_is_not_dialled_for_a_coordinator_out_in_the_world"
LET_GO = "tests/worker/test_swarm.py::test_a_holder_that_has_let_go_of_a_block_is_asked_again_after_a_while"
NEVER_HAS = "tests/worker/test_swarm.py::test_a_holder_that_never_has_what_it_tells_is_asked_twice"
NOT_WHAT_WAS_TOLD = "tests/coordinator/test_sources.py::test_a_share_that_is_not_what_was_told_is_nobodys_source"
RELAYING = "tests/peering/test_relaying.py::"
CREDIT = f"{RELAYING}test_without_credit_nothing_passes"
ABSENT = f"{RELAYING}test_nobody_is_reached_who_does_not_wait_nor_by_somebody_at_whom_they_do_not"
CROWDED = f"{RELAYING}test_who_waits_and_who_passes_is_bounded"
UNPASSED = f"{RELAYING}test_without_a_pass_of_its_own_a_node_takes_nobodys_place"
RUN_OUT = f"{RELAYING}test_who_waits_shows_its_newest_pass_and_goes_when_that_has_run_out"
PASSES = (
    "tests/coordinator/test_relays.py"
    "::test_a_worker_gets_passes_for_a_few_nodes_of_its_own_and_without_one_hears_of_no_relays"
)
RELAYS_AT_HOME = "tests/worker/test_detour.py::test_which_relays_are_gone_to"
BEHIND = "tests/coordinator/test_relays.py::test_a_share_counts_behind_relays_that_were_named_and_no_others"
NO_RELAY = "tests/coordinator/test_relays.py::test_a_relay_is_named_once_it_was_tried"
FORGED = f"{RECORD}test_nobody_else_can_sign_one"
CHANGED = f"{RECORD}test_a_record_with_a_changed_byte_does_not_hold"
BOUNDS = f"{RECORD}test_what_is_out_of_bounds_does_not_hold_though_it_is_signed"
NEWEST = f"{RECORD}test_in_whatever_order_records_come_the_newest_stays"
FLOODS = f"{RECORD}test_strangers_cannot_keep_a_machine_busy_with_records"
TICKET = "no ticket of this run's coordinator"
STRANGERS = "strangers at a relay, in others' places"
PROOF = "a proof that is passed on to another holder"

PEERS: tuple[Guard, ...] = (
    guard(TICKET, dropped("peering:PeerServer._admit", "check_ticket(...)"), NO_TICKET),
    guard(TICKET, dropped("protocol:check_ticket", "ticket.run_id != run_id"), NO_TICKET),
    guard(TICKET, never("protocol:check_ticket", "not now_s < ticket.expires_s <= _"), NO_TICKET, FOR_EVER),
    guard(TICKET, dropped("protocol:check_ticket", "verify_vouch(...)"), NO_TICKET),
    guard(PROOF, dropped("peering:PeerServer._admit", "check_proof(...)"), PASSED_ON, NO_TICKET, ONE_CALL),
    guard(PROOF, dropped("protocol:_proof_message", "bytes.fromhex(holder)"), PASSED_ON),
    guard(PROOF, dropped("protocol:_proof_message", "nonce"), f"{ONE_CALL}[nonce]"),
    guard(PROOF, dropped("protocol:_proof_message", "bytes.fromhex(digest)"), f"{ONE_CALL}[digest]"),
    guard(PROOF, dropped("protocol:_proof_message", "struct.pack('>Q', offset)"), f"{ONE_CALL}[offset]"),
    guard(
        "honest holders avoided", dropped("worker:BlockSwarm._gave_nothing", "is_new"), LET_GO
    ),
    guard(
        "claims without blocks, for ever",
        dropped("worker:BlockSwarm._gave_nothing", "name not in self._refused"),
        NEVER_HAS,
    ),
    guard("anything but a checked block", never("worker:Sharing.open", "digest not in self._blocks.checked"), CHECKED),
    guard("both slots for one key", dropped("peering:Slots.of", "key in self._keys"), ONE_KEY),
    guard("takers that use the line up", never("worker.rules:HouseLine.giving", "is_closed() or is_sending"), GIVEN),
    guard("takers that use the line up", dropped("peering:PeerServer._send", "spend(...)"), SERVED),
    guard("momentum and masters are given",
          never("coordinator.edge:Transfers._block_frames", "not self._run.versions.is_served(digest)"), KEPT),
    guard("momentum and masters are given",
          becomes("coordinator.edge:Archives._refusal", "others < most", "True"), KEPT),
    guard("no file whose size is not its block's",
          never("worker:check_sizes", "ref.payload_bytes != expected"), SIZES),
    guard("a lie in one place of a large block",
          never("worker:ChunkedSource.block", "not self._chunks.holds(number, chunk)"), CHUNK),
    guard("a coordinator's list of chunks that is no such list",
          never("protocol:believable", "count > MOST_CHUNKS or _"), LIST),
    guard("a share at an address or port that is not its worker's",
          becomes("coordinator.edge:Sources._note_share", "None if why else shared", "shared"), NOT_WHAT_WAS_TOLD),
    guard("a coordinator that sends a volunteer's machine round its home network",
          dropped("worker:BlockSwarm._goes_to", "may_dial(...)"), HOME),
    guard("a coordinator that sends a volunteer's machine round its home network",
          dropped("worker:relays_in", "may_dial(...)"), RELAYS_AT_HOME),
    guard("a relay that passes on more than its owner lets go",
          never("peering.sidecar:RelayCredit.spend", "self.is_out"), CREDIT),
    guard("streams to a machine that does not wait for them",
          dropped("peering.sidecar:RelayDesk._pass_on", "giver not in self._waiting"), ABSENT),
    guard("streams to a machine that does not wait for them",
          dropped("peering.sidecar:Reached.on_stream", "peer_id not in _"), ABSENT),
    guard("takers that use a relay up",
          dropped("peering.sidecar:RelayDesk._pass_on", "max(...) >= MOST_CIRCUITS_EACH"), CROWDED),
    guard(STRANGERS, never("peering.sidecar:RelayDesk.on_stream", "not self._admits(...)"), UNPASSED),
    guard(STRANGERS,
          becomes("peering.sidecar:RelayDesk._wait", "self._admits(peer_id, await heard(reader, SILENT_S))",
                  "await heard(reader, SILENT_S)"), RUN_OUT),
    guard(STRANGERS, never("protocol:check_pass", says="a pass has"), f"{UNPASSED}[less than its end]"),
    guard(STRANGERS, never("protocol:check_pass", says="has expired"), f"{UNPASSED}[expired]",
          f"{UNPASSED}[lives too long]"),
    guard(STRANGERS, dropped("protocol:check_pass", "verify_vouch(...)"), f"{UNPASSED}[forged]",
          f"{UNPASSED}[another run's]"),
    guard(STRANGERS, dropped("protocol:_pass_message", "peer_id.encode()"), f"{UNPASSED}[another node's]"),
    guard(STRANGERS, dropped("protocol:_pass_message", "head"), f"{UNPASSED}[made longer]"),
    guard(STRANGERS, dropped("coordinator.edge:Relays.pass_for", "len(...) >= MOST_NODES"), PASSES),
    guard("a share behind relays that nobody named",
          becomes("coordinator.edge:Relays.share_of", "one in known", "True"), BEHIND),
    guard("a relay that is none, or another's",
          dropped("coordinator.edge:Relays._why_no_relay", "await self._node.relays_at(...)"), NO_RELAY),
    guard("a record of another authority", dropped("peering:_check_signatures", "verify(...)"), CHANGED),
    guard("a record of another authority", dropped("peering:_check_signatures", "verify_vouch(...)"), FORGED),
    guard("a record that lives too long", never("peering:_check_life", says="lives for up to"), BOUNDS),
    guard("a record from the future", never("peering:_check_life", says="from the future"), BOUNDS),
    guard("a record that has expired", never("peering:_check_life", says="has expired"), BOUNDS),
    guard("an old record", never("peering:RecordKeeper.offer", "self.newest is not None and _"), NEWEST),
    guard("floods of records", never("peering:RecordKeeper.offer_of_stranger", "self._checks < 1.0"), FLOODS),
)  # fmt: skip
