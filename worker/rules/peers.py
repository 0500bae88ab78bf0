"""What the volunteer ruled about other workers, for a worker whose command says nothing of it: a service, `worker run`.

Decides that what the command says counts more, and that of several workers of one machine the first has the ports that
were named, and the archive. Reads `rules.toml`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from protocol.errors import ConfigError
from worker.options import WorkerOptions
from worker.rules.file import RULES_FILE, read_rules
from worker.rules.model import PeerRules, bytes_of


def with_peers_ruled(options: WorkerOptions, root: Path) -> WorkerOptions:
    """By the rules in the folder `root`; a file that makes no sense rules nothing, which the worker tells later on.

    ConfigError where it is to be a relay that nobody reaches, or that has no rate to keep to.
    """
    try:
        rules = read_rules(root / RULES_FILE).peers
    except ConfigError:
        rules = PeerRules()
    if options.first_home is not None:
        rules = rules.model_copy(update={"port": 0, "p2p_port": 0, "archive": False, "relay": False})
    rate = options.share_bytes_per_s
    ruled = replace(
        options,
        share_bytes_per_s=bytes_of(rules.share) if rate is None else rate,
        share_port=options.share_port or rules.port,
        archive=options.archive or rules.archive,
        p2p=options.p2p or rules.p2p,
        p2p_port=options.p2p_port or rules.p2p_port,
        be_relay=options.be_relay or rules.relay,
    )
    if ruled.be_relay and not (ruled.p2p and ruled.share_bytes_per_s is not None):
        raise ConfigError(
            "a relay (--be-relay, or the rule peers.relay) needs --p2p, by which it is reached, and --share, whose rate"
            " it keeps to"
        )
    return ruled
