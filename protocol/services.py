"""What the wire calls its services. Decides nothing: the names are the contract's. Light, and touches nothing."""

from __future__ import annotations

from typing import Final

from protocol.v1 import barnraise_pb2 as pb

COORDINATOR_SERVICE: Final[str] = pb.DESCRIPTOR.services_by_name["Coordinator"].full_name
OPERATOR_SERVICE: Final[str] = pb.DESCRIPTOR.services_by_name["Operator"].full_name
STANDBY_SERVICE: Final[str] = pb.DESCRIPTOR.services_by_name["Standby"].full_name
WITNESS_SERVICE: Final[str] = pb.DESCRIPTOR.services_by_name["Witness"].full_name
