"""What a worker keeps of its receipts: what is signed for its own key, each once, and all of it after any mishap."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from coordinator.run.receipts import ReceiptBook
from coordinator.store.credit_ledger import CreditEntry, CreditLedger, RevocationEntry
from protocol.errors import MalformedMessage, RemoteError, Unauthenticated, Unavailable
from protocol.identity import PrivateIdentity
from protocol.ids import LeaseId, RoundNumber, RunId, WorkerId
from protocol.receipt_files import CheckedReceipts, checked_receipts
from protocol.receipts import Receipt, sign_receipt
from protocol.tls import CertificateAuthority, manifest_key_message
from protocol.v1 import barnraise_pb2 as pb
from worker.belongings import KEPT_FILE, RECEIPTS_FILE
from worker.home import Enrolment, RunHome, open_home
from worker.progress import QuietReporter
from worker.receipts import ReceiptKeeper

RUN = RunId("run-1")
CA = CertificateAuthority.create(RUN)
SIGNER = PrivateIdentity.from_seed(b"s" * 32)


class Book:
    """A coordinator that has nothing but receipts."""

    def __init__(self, ledger: CreditLedger, worker: PrivateIdentity) -> None:
        self.book = ReceiptBook(run_id=RUN, ledger=ledger, identity=SIGNER, tokens_a_sequence=16)
        self.ledger, self.worker, self.asked = ledger, worker, 0
        self.fails = False

    def credit(self, *numbers: int) -> None:
        entries = [
            CreditEntry(lease_id=LeaseId(f"r{n}.1"), worker=self.worker.worker_id, round=RoundNumber(n), sequences=4)
            for n in numbers
        ]
        self.ledger.write(entries, [])

    def revoke(self, number: int, wall_s: float) -> None:
        worker = WorkerId(self.worker.worker_id)
        entry = RevocationEntry(lease_id=LeaseId(f"r{number}.1"), worker=worker, why="", wall_s=wall_s)
        self.ledger.write([], [entry])

    async def list_receipts(self, after: int) -> pb.ListReceiptsReply:
        self.asked += 1
        if self.fails:
            raise Unavailable("not now")
        found, following = self.book.receipts(self.worker.worker_id, self.worker.public_key, after)
        revoked = self.book.revocations(self.worker.worker_id)
        await asyncio.sleep(0)  # on its way
        return pb.ListReceiptsReply(
            receipts=[pb.SignedReceipt(receipt_json=one.content, signature=one.signature) for one in found],
            next=following,
            revocations_json=revoked.content,
            revocations_signature=revoked.signature,
        )


@pytest.fixture
def home(tmp_path: Path) -> RunHome:
    return enrolled_home(tmp_path / "home")


def enrolled_home(root: Path) -> RunHome:
    """Below `root`, as after enrolling with the coordinator above."""
    made = open_home(root, CA.fingerprint)
    made.save_enrolment(
        Enrolment(
            worker_id=made.identity().worker_id,
            run_id=RUN,
            ca_pem=CA.cert_pem.decode(),
            manifest_public_key_hex=SIGNER.public_key.hex(),
            manifest_key_vouch_hex=CA.sign(manifest_key_message(RUN, SIGNER.public_key)).hex(),
            trusted=False,
        )
    )
    return made


@pytest.fixture
def book(home: RunHome, tmp_path: Path) -> Book:
    return Book(CreditLedger.open(tmp_path / "credit.sqlite"), home.identity())


def held(home: RunHome) -> CheckedReceipts:
    found = checked_receipts((home.folder / RECEIPTS_FILE).read_bytes())
    assert found.wrong == ()
    return found


def rounds(home: RunHome) -> list[int]:
    return [int(one.round) for one in held(home).receipts]


async def fetch(home: RunHome, book: Any) -> int:
    """By a worker process of its own."""
    return await ReceiptKeeper(home).fetch(cast(Any, book))


async def test_what_is_new_is_added_and_what_is_here_is_not_asked_for_again(home, book):
    book.credit(*range(1, 131))
    assert await fetch(home, book) == 130
    assert rounds(home) == list(range(1, 131))
    before = (home.folder / RECEIPTS_FILE).read_bytes()
    assert await fetch(home, book) == 0
    assert (home.folder / RECEIPTS_FILE).read_bytes() == before
    book.credit(131)
    assert await fetch(home, book) == 1
    assert rounds(home) == list(range(1, 132))
    assert held(home).receipts[0].tokens == 64


async def test_what_was_taken_back_is_kept_beside_them_once(home, book):
    book.credit(1, 2)
    await fetch(home, book)
    book.revoke(1, wall_s=7.0)
    book.revoke(9, wall_s=8.0)  # was never credited
    await fetch(home, book)
    await fetch(home, book)
    content = (home.folder / RECEIPTS_FILE).read_bytes()
    assert content.count(b'"revocations"') == 1
    found = held(home)
    assert found.revocations is not None
    assert found.revocations.lease_ids == ("r1.1",)


@pytest.mark.parametrize("mishap", ["lost", "cut", "unnoted", "garbled", "another key"])
async def test_after_any_mishap_all_of_them_are_here_again(home, book, mishap):
    book.credit(1, 2, 3)
    await fetch(home, book)
    file = home.folder / RECEIPTS_FILE
    content = file.read_bytes()
    match mishap:
        case "lost":
            file.unlink()
        case "cut":
            file.write_bytes(content[:-40])
        case "unnoted":
            file.write_bytes(content + content.splitlines(keepends=True)[-1][:30])
        case "garbled":
            (home.folder / KEPT_FILE).write_bytes(b"{")
        case _:
            book.worker = PrivateIdentity.generate()
            (home.folder / "identity.pem").write_bytes(book.worker.to_pem())
            book.credit(*[])
            book.ledger.write(
                [
                    CreditEntry(lease_id=LeaseId(f"x{n}"), worker=book.worker.worker_id, round=RoundNumber(n),
                                sequences=4)
                    for n in (1, 2, 3)
                ],
                [],
            )  # fmt: skip
    await fetch(home, book)
    assert rounds(home) == [1, 2, 3]
    assert {one.worker_key for one in held(home).receipts} == {book.worker.public_key.hex()}


async def test_what_the_run_did_not_sign_for_this_key_is_not_kept(home, book):
    book.credit(1)
    await fetch(home, book)
    before = (home.folder / RECEIPTS_FILE).read_bytes()
    stranger = PrivateIdentity.generate()
    fields = {"round": RoundNumber(2), "lease_id": LeaseId("r2.1"), "tokens": 1}
    own = Receipt(run_id=RUN, worker_key=home.identity().public_key.hex(), **fields)  # type: ignore[arg-type]
    anothers = Receipt(run_id=RUN, worker_key=stranger.public_key.hex(), **fields)  # type: ignore[arg-type]
    of_another_run = Receipt(run_id=RunId("run-2"), worker_key=own.worker_key, **fields)  # type: ignore[arg-type]
    for receipt, signer, error in (
        (own, stranger, Unauthenticated),
        (anothers, SIGNER, MalformedMessage),
        (of_another_run, SIGNER, MalformedMessage),
    ):
        content = receipt.to_json()
        signed = pb.SignedReceipt(receipt_json=content, signature=sign_receipt(signer, content))

        class Evil:
            async def list_receipts(self, after: int, signed: Any = signed) -> pb.ListReceiptsReply:
                return pb.ListReceiptsReply(receipts=[signed], next=after + 1)

        with pytest.raises(error):
            await fetch(home, Evil())
    flood = pb.ListReceiptsReply(receipts=[pb.SignedReceipt()] * 5000, next=9)

    class Flood:
        async def list_receipts(self, after: int) -> pb.ListReceiptsReply:
            return flood

    with pytest.raises(RemoteError):
        await fetch(home, Flood())
    assert (home.folder / RECEIPTS_FILE).read_bytes() == before


async def test_looking_is_beside_everything_else_and_in_vain_is_no_harm(home, book):
    keeper = ReceiptKeeper(home)
    book.credit(1)
    book.fails = True
    keeper.look(cast(Any, book))
    await keeper.close()
    assert book.asked == 1
    book.fails = False
    keeper.look(cast(Any, book))
    await asyncio.sleep(0)
    book.credit(2)
    keeper.look(cast(Any, book))  # while the first is under way: asked once more after it, not at once
    await keeper.close()
    assert rounds(home) == [1, 2]


async def test_how_one_stands_is_told_once_and_whatever_a_coordinator_says_is_bounded(home, book):
    said: list[dict[str, object]] = []

    class Listener(QuietReporter):
        def say(self, event: str, text: str, **fields: object) -> None:
            assert event == "credit"
            said.append({"text": text, **fields})

    class Telling:
        standing = pb.CreditStanding(tokens=64, rank=1, ranked=3, losses=[5.0, float("nan"), 4.123456])

        async def list_receipts(self, after: int) -> pb.ListReceiptsReply:
            return pb.ListReceiptsReply(next=after, standing=self.standing)

    keeper, telling = ReceiptKeeper(home, Listener()), Telling()
    await keeper.fetch(cast(Any, telling))
    await keeper.fetch(cast(Any, telling))
    assert said == [
        {
            "text": "your work so far: 64 validated tokens, rank 1 of 3",
            "tokens": 64, "rank": 1, "ranked": 3, "losses": [5.0, 4.1235],
        }
    ]  # fmt: skip
    telling.standing = pb.CreditStanding(tokens=2**64 - 1, rank=2**32 - 1, ranked=7, losses=[1.0] * 5000)
    await keeper.fetch(cast(Any, telling))
    losses = said[1].pop("losses")
    assert isinstance(losses, list)
    assert len(losses) == 60
    assert (said[1]["tokens"], said[1]["rank"]) == (10**18, 7)
    telling.standing = pb.CreditStanding(ranked=7)
    await keeper.fetch(cast(Any, telling))
    assert said[2]["text"] == "nothing is credited to this machine yet: that comes with the first work that is accepted"
