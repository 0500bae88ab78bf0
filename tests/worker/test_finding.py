"""Looking for a run that is gone: when, where, and whom nobody believes. Virtual time, no network."""

from __future__ import annotations

import asyncio
import itertools
import json

import pytest

from peering.certificate import new_certificate
from peering.record import RecordSigner
from protocol.causes import Cause
from protocol.errors import Unavailable
from protocol.identity import PrivateIdentity
from protocol.ids import RunId
from protocol.joinlink import JoinLink
from protocol.tls import CertificateAuthority
from protocol.v1 import barnraise_pb2 as pb
from worker.acquaintances import MOST_KEPT, PEERS_FILE, Acquaintance, Acquaintances
from worker.finding import LONGEST_PAUSE_S, RECORD_FILE, Finder
from worker.timing import Timing

RUN = RunId("run-1")
AUTHORITY = CertificateAuthority.create(RUN)
SIGNER = RecordSigner.of(RUN, AUTHORITY, PrivateIdentity.generate())
CERTIFICATE = new_certificate().der
LINK = JoinLink(host="127.0.0.1", port=1, fingerprint=AUTHORITY.fingerprint)


def record(*addresses: str, sequence: int = 1, signer: RecordSigner = SIGNER) -> bytes:
    return signer.sign(epoch=0, sequence=sequence, addresses=addresses, issued_s=1000.0)


def holder(number: int = 1) -> pb.Holder:
    return pb.Holder(host="127.0.0.1", port=number, certificate=CERTIFICATE)


class Memory:
    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def keep(self, name: str, content: bytes) -> None:
        self.files[name] = content

    def kept(self, name: str) -> bytes | None:
        return self.files.get(name)


class World:
    """Where the run answers, and what others say."""

    def __init__(self, link: JoinLink = LINK, files: Memory | None = None) -> None:
        self.now_s, self.there, self.says = 0.0, set[int](), list[bytes]()
        self.probed: list[tuple[str, int]] = []
        self.asked: list[Acquaintance] = []
        self.files = files or Memory()
        self.finder = Finder(
            link, self.files, Timing(clock=lambda: self.now_s), probe=self.probe, ask=self.ask, wall_s=lambda: 1001.0
        )
        self.moved_to: list[JoinLink] = []
        self.finder.moved = self.moved_to.append

    @property
    def moves(self) -> list[str]:
        return [link.address for link in self.moved_to]

    def probe(self, host: str, port: int, _fingerprint: str, _timeout_s: float) -> bytes:
        self.probed.append((host, port))
        if port not in self.there:
            raise Unavailable("nobody")
        return b""

    async def ask(self, one: Acquaintance, _own: bytes) -> bytes:
        self.asked.append(one)
        if not self.says:
            raise Unavailable("gone")
        return self.says[len(self.asked) % len(self.says)]

    async def miss(self, cause: Cause = Cause.CONNECTION_REFUSED) -> None:
        self.finder.missed(cause)
        if self.finder._search is not None:
            await self.finder._search


async def test_a_run_that_moved_is_found_where_another_worker_says() -> None:
    world = World()
    world.finder.met([holder()])
    world.says, world.there = [record("127.0.0.1:7")], {7}
    await world.miss()
    assert world.moves == ["127.0.0.1:7"]
    assert world.files.files[RECORD_FILE] == world.says[0]


async def test_whoever_tells_us_while_we_look_is_heard_at_once() -> None:
    world = World()
    await world.miss()
    assert world.moves == []
    world.there = {7}
    assert world.finder.keeper.offer_of_stranger(record("127.0.0.1:7"))
    assert world.finder._search is not None
    await world.finder._search
    assert world.moves == ["127.0.0.1:7"]


async def test_nobody_is_believed_but_the_authority_and_nobody_at_all_before_the_certificate_answers() -> None:
    world = World()
    world.finder.met([holder()])
    strangers = RecordSigner.of(RUN, CertificateAuthority.create(RUN), PrivateIdentity.generate())
    world.says, world.there = [record("127.0.0.1:7", signer=strangers)], {7}
    await world.miss()
    assert (world.moves, world.probed) == ([], [])  # not even tried
    world.now_s = 100.0
    world.says, world.there = [record("127.0.0.1:7")], set()
    await world.miss()
    assert (world.moves, world.probed) == ([], [("127.0.0.1", 7)])


async def test_what_was_heard_before_is_tried_first_and_further_addresses_of_the_link_too() -> None:
    world = World(JoinLink(host="127.0.0.1", port=1, fingerprint=AUTHORITY.fingerprint, others=(("127.0.0.2", 2),)))
    world.finder.heard(record("127.0.0.1:7"))
    world.there = {2}
    await world.miss()
    assert set(world.probed) == {("127.0.0.1", 7), ("127.0.0.2", 2)}
    assert world.moves == ["127.0.0.2:2"]
    assert world.moved_to[0].others == (("127.0.0.1", 1),), "where it was, should it come back"
    assert world.asked == []  # nobody had to be
    again = World(files=world.files)  # another process, with what is on disk
    again.there = {7}
    await again.miss()
    assert again.moves == ["127.0.0.1:7"]


async def test_it_is_looked_for_ever_less_often_and_at_once_after_it_was_there() -> None:
    world = World()
    world.finder.met([holder()])
    looked = []
    for second in range(600):
        world.now_s = float(second)
        before = len(world.asked)
        await world.miss()
        if len(world.asked) > before:
            looked.append(second)
    gaps = [after - before for before, after in itertools.pairwise(looked)]
    assert gaps[0] <= 3
    assert LONGEST_PAUSE_S * 0.7 < gaps[-1] <= LONGEST_PAUSE_S * 1.3
    world.finder.answered()
    world.now_s = looked[-1] + 200.0
    before = len(world.asked)
    await world.miss()
    assert len(world.asked) == before + 1


@pytest.mark.parametrize("cause", [Cause.OVERLOADED, Cause.BANNED, Cause.FAILED, None])
async def test_a_coordinator_that_answers_is_where_it_was(cause: Cause | None) -> None:
    world = World()
    world.finder.met([holder()])
    await world.miss(cause)  # type: ignore[arg-type]
    assert world.asked == []


async def test_nobody_sends_a_machine_round_its_own_home_network() -> None:
    world = World(JoinLink(host="203.0.113.5", port=1, fingerprint=AUTHORITY.fingerprint))
    public = World(JoinLink(host="93.184.216.34", port=1, fingerprint=AUTHORITY.fingerprint))
    public.finder.heard(record("192.168.1.1:80", "10.0.0.1:80", "example.org:80"))
    await public.miss()
    assert public.probed == [("example.org", 80)]
    public.finder.met([pb.Holder(host="192.168.1.1", port=80, certificate=CERTIFICATE)])
    public.now_s = 100.0
    await public.miss()
    assert public.asked == []
    await world.miss()


async def test_a_search_ends_with_the_worker() -> None:
    world, stuck = World(), asyncio.Event()

    async def hang(_one: Acquaintance, _own: bytes) -> bytes:
        await stuck.wait()
        return b""

    world.finder._ask = hang
    world.finder.met([holder()])
    world.finder.missed(Cause.NO_ANSWER)
    await asyncio.sleep(0)
    await world.finder.close()
    assert world.finder._search is not None
    assert world.finder._search.done()


# ---- who is remembered


def test_acquaintances_outlive_the_process_and_are_bounded() -> None:
    files = Memory()
    for number in range(1, MOST_KEPT + 9):
        Acquaintances(files, "127.0.0.1").met([Acquaintance(host="127.0.0.1", port=number, certificate=CERTIFICATE)])
    known = Acquaintances(files, "127.0.0.1").known
    assert [one.port for one in known] == list(range(MOST_KEPT + 8, 8, -1))


def test_who_is_known_already_is_not_written_again() -> None:
    files = Memory()
    one = Acquaintance(host="127.0.0.1", port=1, certificate=CERTIFICATE)
    known = Acquaintances(files, "127.0.0.1")
    known.met([one])
    del files.files[PEERS_FILE]
    known.met([one])
    assert files.files == {}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1]", b'{"a": 1}', b"[" * 100_000, b'[{"host": "h", "port": 0, "certificate": "00"}]'],
)
def test_a_damaged_file_of_acquaintances_is_an_empty_one(content: bytes) -> None:
    files = Memory()
    files.files[PEERS_FILE] = content
    assert Acquaintances(files, "127.0.0.1").known == ()


def test_what_no_honest_worker_is_like_is_not_remembered() -> None:
    files = Memory()
    known = Acquaintances(files, "127.0.0.1")
    known.met(
        [
            Acquaintance(host="", port=1, certificate=b"c"),
            Acquaintance(host="127.0.0.1", port=0, certificate=b"c"),
            Acquaintance(host="127.0.0.1", port=1, certificate=b"c" * 4096),
            Acquaintance(host="224.0.0.1", port=1, certificate=b"c"),
        ]
    )
    assert known.known == ()
    assert json.loads(files.files.get(PEERS_FILE, b"[]")) == []
