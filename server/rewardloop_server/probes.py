"""The services that probes and tools ask: grpc.health.v1 and reflection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection, reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

_HEALTH = "grpc.health.v1.Health"
_REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"


class ListingHealth(HealthServicer):  # type: ignore[misc]  # it has no stubs
    """The health service of grpcio with its method List, which grpcio leaves out."""

    async def List(self, request: health_pb2.HealthListRequest, context: Any) -> health_pb2.HealthListResponse:
        """Return the status of every service."""
        statuses = {name: health_pb2.HealthCheckResponse(status=status) for name, status in self._server_status.items()}
        return health_pb2.HealthListResponse(statuses=statuses)


def add_health_and_reflection(server: grpc.aio.Server, services: Sequence[ServiceDescriptor]) -> HealthServicer:
    """Add grpc.health.v1, and reflection of the services in both of its versions, to the server."""
    health = ListingHealth()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    names = [*(service.full_name for service in services), reflection.SERVICE_NAME, _REFLECTION_V1, _HEALTH]
    reflection.enable_server_reflection(names, server)
    # The messages of v1 have the fields of v1alpha.
    info = grpc.stream_stream_rpc_method_handler(
        ReflectionServicer(names).ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(_REFLECTION_V1, {"ServerReflectionInfo": info}),)
    )
    return health
