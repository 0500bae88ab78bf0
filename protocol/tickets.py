"""What enrolled workers show: to another, before it gives them a block, a ticket with a proof; to a relay, a pass.

A ticket says that a key is enrolled in a run, until a moment by the coordinator's clock; the run's CA signs it, which
every worker of the run trusts already. A proof is the key's signature over the nonce of whoever is asked, the name of
that holder, and what is asked for: a holder cannot pass it on to another, and nobody can use it again. A pass says the
same of a node of the peer-to-peer network, by its peer id, which libp2p proves on each connection: so it has no proof
beside it. Touches nothing.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from protocol.canonical import length_prefixed
from protocol.errors import MalformedMessage, Unauthenticated
from protocol.identity import PUBLIC_KEY_BYTES, PrivateIdentity, verify
from protocol.ids import Digest, RunId
from protocol.tls import CertificateAuthority, verify_vouch

TICKET_S = 900.0
"""A ticket's life: who is shut out is still served by others for as long."""
NONCE_BYTES = 32

PASS_S = TICKET_S
"""A pass's life, by the calendar: a relay has no clock of the coordinator's."""
PASS_SKEW_S = 600.0
"""So far may a relay's clock be off: home computers' clocks are set by hand, too."""
MOST_PASS_BYTES = 80
"""When it ends, and a signature of up to 72 bytes."""

_TICKET_DOMAIN = b"peer-ticket"
_PASS_DOMAIN = b"relay-pass"
_PASS_HEAD = struct.Struct(">d")
_PROOF_DOMAIN = b"barnraise-peer-proof-v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """Enrolled, until then."""

    public_key: bytes
    run_id: RunId
    expires_s: float
    """By the coordinator's clock."""
    signature: bytes


def sign_ticket(authority: CertificateAuthority, run_id: RunId, public_key: bytes, expires_s: float) -> Ticket:
    """A ticket for the holder of `public_key`."""
    signature = authority.sign(_ticket_message(run_id, public_key, expires_s))
    return Ticket(public_key=public_key, run_id=run_id, expires_s=expires_s, signature=signature)


def check_ticket(ticket: Ticket, ca_pem: bytes, run_id: RunId, now_s: float) -> None:
    """Raises Unauthenticated unless the CA of `run_id` signed it and it still holds."""
    if ticket.run_id != run_id or len(ticket.public_key) != PUBLIC_KEY_BYTES:
        raise Unauthenticated("the ticket is not one of this run")
    if not now_s < ticket.expires_s <= now_s + 2 * TICKET_S:  # false for NaN too
        raise Unauthenticated("the ticket has expired; ask the coordinator for another")
    verify_vouch(ca_pem, _ticket_message(ticket.run_id, ticket.public_key, ticket.expires_s), ticket.signature)


def sign_pass(authority: CertificateAuthority, peer_id: str, now_s: float) -> bytes:
    """A pass for the node of that name, from now on, in calendar time."""
    head = _PASS_HEAD.pack(now_s + PASS_S)
    return head + authority.sign(_pass_message(peer_id, head))


def check_pass(shown: bytes, ca_pem: bytes, peer_id: str, now_s: float) -> None:
    """Raises RemoteError unless the CA of a run, each of which has its own, gave it to that node and it still holds."""
    if not _PASS_HEAD.size < len(shown) <= MOST_PASS_BYTES:
        raise MalformedMessage(f"a pass has {_PASS_HEAD.size + 1} to {MOST_PASS_BYTES} bytes, got {len(shown)}")
    head, signature = shown[: _PASS_HEAD.size], shown[_PASS_HEAD.size :]
    (expires_s,) = _PASS_HEAD.unpack(head)
    if not now_s - PASS_SKEW_S < expires_s <= now_s + PASS_S + PASS_SKEW_S:  # false for NaN too
        raise Unauthenticated("the pass has expired, or a clock is wrong")
    verify_vouch(ca_pem, _pass_message(peer_id, head), signature)


def prove(identity: PrivateIdentity, nonce: bytes, holder: Digest, digest: Digest, offset: int) -> bytes:
    """The signature with which the ticket's key asks `holder` for a block."""
    return identity.sign(_proof_message(nonce, holder, digest, offset))


def check_proof(public_key: bytes, proof: bytes, nonce: bytes, holder: Digest, digest: Digest, offset: int) -> None:
    """Raises Unauthenticated unless the holder of `public_key` signed exactly this."""
    verify(public_key, proof, _proof_message(nonce, holder, digest, offset))


def _ticket_message(run_id: RunId, public_key: bytes, expires_s: float) -> bytes:
    return length_prefixed(_TICKET_DOMAIN, run_id.encode(), public_key, struct.pack(">d", expires_s))


def _pass_message(peer_id: str, head: bytes) -> bytes:
    return length_prefixed(_PASS_DOMAIN, peer_id.encode(), head)


def _proof_message(nonce: bytes, holder: Digest, digest: Digest, offset: int) -> bytes:
    return length_prefixed(
        _PROOF_DOMAIN, nonce, bytes.fromhex(holder), bytes.fromhex(digest), struct.pack(">Q", offset)
    )
