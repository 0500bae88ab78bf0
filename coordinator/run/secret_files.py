"""A new run's keys and secrets, and its id.

Decides what they are made of: chance, or a simulation's seed. Touches `secret/` in the run folder.
"""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path

from coordinator.settings import RunSettings
from protocol.identity import PrivateIdentity
from protocol.ids import RunId
from protocol.private_files import write_private
from protocol.tls import CertificateAuthority

SECRET_BYTES = 32


def write_secrets(root: Path, settings: RunSettings) -> RunId:
    """Make them; the run's id."""
    secret = root / "secret"
    secret.mkdir(mode=0o700)
    if settings.sim_secret_from_seed:
        seed = f"barnraise-simulation-{settings.seed}".encode()
        draws, run_id = hashlib.sha256(seed).digest(), RunId(f"sim-{hashlib.sha256(seed + b'-id').hexdigest()[:12]}")
    else:
        draws, run_id = secrets.token_bytes(SECRET_BYTES), RunId(f"run-{secrets.token_hex(6)}")
    write_private(secret / "draws.secret", draws)
    authority = CertificateAuthority.create(run_id)
    authority.save(secret)
    leaf = authority.issue_leaf(settings.certificate_hosts())
    write_private(secret / "leaf.pem", leaf.cert_pem)
    write_private(secret / "leaf.key", leaf.key_pem)
    PrivateIdentity.generate().save(secret / "manifest.key")
    PrivateIdentity.generate().save(secret / "operator.key")
    return run_id
