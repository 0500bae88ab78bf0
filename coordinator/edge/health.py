"""What gRPC's health check is answered.

Decides that a held run, or one that is over, serves everything but leases.
"""

from __future__ import annotations

from typing import Any

from grpc_health.v1 import health_pb2

from coordinator.engine.engine import Engine
from coordinator.engine.phases import Phase
from protocol.services import COORDINATOR_SERVICE, OPERATOR_SERVICE

LEASES = "barnraise.leases"
"""What health is asked about apart from the rest."""


async def check_health(engine: Engine, request: Any) -> Any:
    """One check, whoever asks."""
    state, status = engine.state, health_pb2.HealthCheckResponse.SERVING
    if request.service not in ("", COORDINATOR_SERVICE, OPERATOR_SERVICE, LEASES):
        status = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    elif request.service == LEASES and (state.hold is not None or state.phase is Phase.OVER):
        status = health_pb2.HealthCheckResponse.NOT_SERVING
    return health_pb2.HealthCheckResponse(status=status)
