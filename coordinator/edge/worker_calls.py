"""Every call that a worker may make, and what answers it: one table for the real server and for simulated ones.

Decides nothing.
"""

from __future__ import annotations

from coordinator.edge.membership import Membership
from coordinator.edge.rpc import Endpoint, Handler
from coordinator.edge.service import WorkerService
from coordinator.edge.transfers import Transfers
from protocol.v1 import barnraise_pb2 as pb


def worker_handlers(
    calls: Endpoint, membership: Membership, service: WorkerService, transfers: Transfers
) -> dict[str, Handler]:
    """Handlers by method."""
    return dict(
        [
            calls.keyed("Enrol", pb.EnrolRequest, membership.enrol),
            calls.keyed("OpenSession", pb.OpenSessionRequest, membership.open_session),
            calls.unary("AcquireLease", pb.AcquireLeaseRequest, service.acquire_lease),
            calls.unary("ReturnLease", pb.ReturnLeaseRequest, service.return_lease),
            calls.unary("Heartbeat", pb.HeartbeatRequest, service.heartbeat),
            calls.unary("CommitSubmission", pb.CommitSubmissionRequest, service.commit_submission),
            calls.unary("GetManifest", pb.GetManifestRequest, service.get_manifest),
            calls.keyed("AskAudit", pb.AskAuditRequest, membership.ask_audit),
            calls.unary("Sources", pb.SourcesRequest, service.sources.answer),
            calls.unary("Archive", pb.ArchiveRequest, service.archives.answer),
            calls.unary("AnswerMeasure", pb.AnswerMeasureRequest, transfers.measures.answer),
            calls.unary("ListReceipts", pb.ListReceiptsRequest, membership.list_receipts),
            calls.keyed("Leave", pb.LeaveRequest, membership.leave),
            calls.keyed("RotateKey", pb.RotateKeyRequest, membership.rotate_key),
            calls.upload("Upload", pb.UploadHeader, transfers.upload),
            calls.download("Download", pb.DownloadRequest, transfers.download),
        ]
    )
