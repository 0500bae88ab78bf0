"""The witness, as a process, and the line to it.

Decides nothing: `coordinator/standby/witness.py` judges. Always: what it answers is on its disk before; only who has
the secret of its link is answered. It keeps a few hundred bytes a run, and touches its own folder and the network.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hmac
import json
import secrets
from pathlib import Path

import grpc
from google.protobuf.message import DecodeError

from coordinator.edge.dialling import dialled, told
from coordinator.edge.rpc import status_of, trailers_of
from coordinator.run.folder import RunFolder
from coordinator.run.replication import AskHer
from coordinator.run.seats import witness_of
from coordinator.standby.seat import Held, Request, WitnessAnswer
from coordinator.standby.witness import judged
from protocol.errors import ConfigError, MalformedMessage, RemoteError, Unauthenticated
from protocol.hosts import address_text
from protocol.ids import RunId
from protocol.joinlink import JoinLink
from protocol.limits import CALL_TIMEOUT_S, MAX_CONCURRENT_RPCS, server_options
from protocol.private_files import read_private, write_private
from protocol.services import WITNESS_SERVICE
from protocol.tls import CertificateAuthority
from protocol.v1 import barnraise_pb2 as pb

MOST_RUNS = 1000
_RECORD = "witness.json"
_MAX_NAME = 128


class WitnessProcess:
    """One witness's, in a folder of its own. `start` once, `stop` once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[str, Held] = {}
        self._secret = ""
        self._server: grpc.aio.Server | None = None
        self._one_at_a_time = asyncio.Lock()
        self.port = 0
        self.fingerprint = ""

    async def start(self, host: str, port: int) -> JoinLink:
        """Listen, with the keys that the folder has, or that are made now; the link by which it is asked."""
        keys = self._folder / "secret"
        if not (keys / "ca.pem").is_file():
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            keys.mkdir(mode=0o700, exist_ok=True)
            write_private(keys / "witness.secret", secrets.token_urlsafe(24).encode())
            CertificateAuthority.create(RunId("witness")).save(keys)
        authority = CertificateAuthority.load(keys)
        self._secret = read_private(keys / "witness.secret").decode("ascii", "replace")
        self._held = _kept(self._folder / _RECORD)
        leaf = authority.issue_leaf([] if host in {"0.0.0.0", "::"} else [host])  # noqa: S104
        self._server = grpc.aio.server(options=server_options(), maximum_concurrent_rpcs=MAX_CONCURRENT_RPCS)
        handler = grpc.unary_unary_rpc_method_handler(self._ask)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(WITNESS_SERVICE, {"Ask": handler}),)
        )
        credentials = grpc.ssl_server_credentials([(leaf.key_pem, leaf.cert_pem)])
        try:
            self.port = int(self._server.add_secure_port(address_text(host, port), credentials))
        except RuntimeError:
            raise ConfigError(f"cannot listen on {address_text(host, port)}: is that port taken?") from None
        await self._server.start()
        self.fingerprint = authority.fingerprint
        reached = "127.0.0.1" if host in {"0.0.0.0", "::"} else host  # noqa: S104
        return JoinLink(host=reached, port=self.port, fingerprint=self.fingerprint, invite=self._secret)

    async def stop(self) -> None:
        """Hang up."""
        if self._server is not None:
            await self._server.stop(1.0)

    async def _ask(self, body: bytes, context: grpc.aio.ServicerContext) -> bytes:
        try:
            request = self._read(body)
        except RemoteError as error:
            await context.abort(status_of(error), str(error), trailers_of(error))
        async with self._one_at_a_time:
            return await asyncio.to_thread(self._judge, request)

    def _read(self, body: bytes) -> pb.WitnessRequest:
        """A question by somebody who has the secret."""
        try:
            request = pb.WitnessRequest.FromString(body)
        except DecodeError:
            raise MalformedMessage("this is no question to a witness") from None
        if not hmac.compare_digest(request.secret.encode(), self._secret.encode()):
            raise Unauthenticated("the secret of this witness's link is another one")
        if not 0 < len(request.run_id) <= _MAX_NAME or len(request.by) > _MAX_NAME:
            raise MalformedMessage("a run's or a machine's name is 1 to 128 characters")
        return request

    def _judge(self, request: pb.WitnessRequest) -> bytes:
        before = self._held.get(request.run_id)
        if before is None and len(self._held) >= MOST_RUNS:
            return pb.WitnessReply(why=f"this witness keeps {MOST_RUNS} runs already").SerializeToString()
        answer = judged(before, _request_of(request))
        if answer.granted and answer.held is not None:
            kept = {**self._held, request.run_id: answer.held}
            plain = {run: dataclasses.asdict(held) for run, held in kept.items()}
            write_private(self._folder / _RECORD, json.dumps(plain, indent=1).encode())
            self._held = kept
        reply = pb.WitnessReply(granted=answer.granted, why=answer.why)
        if answer.held is not None:
            reply.held.CopyFrom(_message_of(answer.held))
        return reply.SerializeToString()


def asking(link: JoinLink, run_id: str) -> AskHer:
    """Asks the witness that `link` names about this run; each time over a line of its own, since it is asked rarely."""

    async def ask(request: Request) -> WitnessAnswer:
        message = pb.WitnessRequest(
            secret=link.invite or "",
            run_id=run_id,
            by=request.by,
            expects=request.expects,
            confirmed=request.confirmed,
            want=None if request.want is None else _message_of(request.want),
        )
        async with await dialled(link) as channel:
            try:
                call = channel.unary_unary(f"/{WITNESS_SERVICE}/Ask", None, None)
                reply = pb.WitnessReply.FromString(await call(message.SerializeToString(), timeout=CALL_TIMEOUT_S))
            except grpc.aio.AioRpcError as error:
                raise told(error, f"at {link.address}") from None
            except DecodeError as error:
                raise MalformedMessage("the witness's answer cannot be read") from error
        held = _held_of(reply.held) if reply.HasField("held") else None
        return WitnessAnswer(held=held, granted=reply.granted, why=reply.why)

    return ask


def witness_for(folder: RunFolder) -> AskHer | None:
    """Asks the run's own witness; None where it has none."""
    link = witness_of(folder.root)
    return None if link is None else asking(link, folder.run_id)


def _kept(path: Path) -> dict[str, Held]:
    try:
        return {run: Held(**held) for run, held in json.loads(path.read_bytes()).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} is damaged: who leads is not known here any more; begin with a new folder"
        ) from error


def _message_of(held: Held) -> pb.WitnessHeld:
    return pb.WitnessHeld(**dataclasses.asdict(held))


def _held_of(message: pb.WitnessHeld) -> Held:
    return Held(
        number=message.number,
        epoch=message.epoch,
        leader=message.leader,
        sync=message.sync,
        follower=message.follower,
    )


def _request_of(message: pb.WitnessRequest) -> Request:
    want = _held_of(message.want) if message.HasField("want") else None
    return Request(by=message.by, expects=message.expects, want=want, confirmed=message.confirmed)
