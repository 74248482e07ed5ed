"""The AccessService: says who the caller is, by the credential with which the door let the call in."""

from __future__ import annotations

from typing import Any, TypeAlias

import grpc

from rewardloop.v1 import access_pb2, access_pb2_grpc
from rewardloop_server.doors.callers import PRESENT
from rewardloop_server.doors.roles import ROLES

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class AccessServicer(access_pb2_grpc.AccessServiceServicer):
    """Answers from the present call's credential, and keeps nothing."""

    async def GetIdentity(
        self, request: access_pb2.GetIdentityRequest, context: Context
    ) -> access_pb2.GetIdentityResponse:
        """Return the caller and its roles."""
        credential = PRESENT.get()
        if credential is None:
            return access_pb2.GetIdentityResponse(roles=sorted(ROLES), is_open=True)
        return access_pb2.GetIdentityResponse(caller=credential.caller, roles=sorted(credential.roles))
