"""The certificate by which a worker that shares is known: made for one process, vouched for by nobody but the tracker.

Decides nothing. A holder has a little authority of its own and a leaf below it, as a coordinator has (protocol/tls.py):
gRPC checks the leaf against that one certificate, which the coordinator passes on.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass

from protocol.ids import Digest, RunId
from protocol.tls import CertificateAuthority, LeafCertificate


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerCertificate:
    """One process's."""

    der: bytes
    """What callers check the leaf against."""
    name: Digest
    """Its SHA-256, by which the holder is called."""
    leaf: LeafCertificate


def new_certificate() -> PeerCertificate:
    """Two fresh ECDSA keys, which no disk sees."""
    authority = CertificateAuthority.create(RunId("peer"))
    der = ssl.PEM_cert_to_DER_cert(authority.cert_pem.decode("ascii"))
    return PeerCertificate(der=der, name=Digest(authority.fingerprint), leaf=authority.issue_leaf())
