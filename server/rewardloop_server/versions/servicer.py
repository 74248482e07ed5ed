"""The ModelService: shows versions, and says which of them serve."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, Protocol, TypeAlias

import grpc
import structlog

from rewardloop.formats.mixing.names import POLICY
from rewardloop.formats.store import CorruptVersion, Manifest, ModelStore, VersionNotFound
from rewardloop.formats.storing.active import Share
from rewardloop.formats.storing.evaluated import Evaluated, EvaluatedError
from rewardloop.formats.vocabulary import VersionRole
from rewardloop.v1 import common_pb2, model_pb2, model_pb2_grpc
from rewardloop_server.calls.errors import (
    InvalidRequest,
    NoModel,
    NothingToRollBack,
    PointerMoved,
    UnknownVersion,
    Violation,
)
from rewardloop_server.versions.host import refusal
from rewardloop_server.versions.pointer import ActivePointer
from rewardloop_server.versions.worker_link import PolicyWorkerLink

log = structlog.get_logger()

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class ModelHost(Protocol):
    """The part of `VersionHost` that the service uses, for any kind of model."""

    @property
    def active(self) -> Manifest | None: ...

    def changing(self) -> AbstractAsyncContextManager[None]: ...

    async def warm(self, version: str) -> Manifest: ...

    def activate(self, version: str) -> None: ...

    def assign(self, role: VersionRole, holder: Share) -> None: ...

    def end(self, role: VersionRole) -> None: ...

    def state(self, version: str) -> model_pb2.VersionState: ...

    def changes(self) -> AsyncIterator[Manifest]: ...


class ModelServicer(model_pb2_grpc.ModelServiceServicer):
    """Answers for the models that this process hosts. Calls about the policy worker's model go through ``worker``."""

    def __init__(
        self, hosts: Mapping[str, ModelHost], store: ModelStore, pointer: ActivePointer, worker: PolicyWorkerLink | None
    ) -> None:
        self._hosts = hosts
        self._store = store
        self._pointer = pointer
        self._worker = worker

    async def ListVersions(
        self, request: model_pb2.ListVersionsRequest, context: Context
    ) -> model_pb2.ListVersionsResponse:
        if (worker := self._worker_of(request.model)) is not None:
            reply = await worker.list_versions(request, context)
            reply.models[:] = self._names
            return reply
        host = self._hosts[request.model]
        stored = await asyncio.to_thread(_readable_versions, self._store, request.model)
        versions = [_info(host, manifest, evaluated) for manifest, evaluated in stored]
        return model_pb2.ListVersionsResponse(versions=versions, models=self._names)

    async def GetVersion(self, request: model_pb2.GetVersionRequest, context: Context) -> model_pb2.GetVersionResponse:
        if (worker := self._worker_of(request.model)) is not None:
            return await worker.get_version(request, context)
        host = self._hosts[request.model]
        if request.version:
            manifest = await self._manifest(request.model, request.version)
        else:
            manifest = _active(host, request.model)
        info = _info(host, manifest, await asyncio.to_thread(_evaluated, self._store, manifest))
        info.manifest_json = manifest.to_json()
        return model_pb2.GetVersionResponse(version=info)

    async def Promote(self, request: model_pb2.PromoteRequest, context: Context) -> model_pb2.PromoteResponse:
        if (worker := self._worker_of(request.model)) is not None:
            return await worker.promote(request, context)
        if not request.version:
            raise InvalidRequest([Violation("version", "missing")])
        host = self._hosts[request.model]
        async with host.changing():
            manifest = await host.warm(request.version)
            before = await self._pointer.move(
                request.model, request.version, request.reason, request.leader_epoch, _expected(request)
            )
            host.activate(request.version)
        log.info("promoted", model=request.model, version=request.version, previous=before, reason=request.reason)
        return model_pb2.PromoteResponse(version=_info(host, manifest), previous_version=before or "")

    async def Rollback(self, request: model_pb2.RollbackRequest, context: Context) -> model_pb2.RollbackResponse:
        if (worker := self._worker_of(request.model)) is not None:
            return await worker.roll_back(request, context)
        host = self._hosts[request.model]
        active = await self._pointer.read(request.model)
        if active is None or active.rollback_target is None:
            raise NothingToRollBack(f"no version of {request.model} was active before the present one")
        if request.HasField("expected_version") and active.version != request.expected_version:
            raise PointerMoved(f"{request.model} {active.version} is active, not {request.expected_version}")
        async with host.changing():
            manifest = await host.warm(active.rollback_target)
            if not await self._pointer.move_back(request.model, active.version, active.rollback_target, request.reason):
                # Going back from whatever is active now might bring back the very version that the caller rejects.
                raise PointerMoved(f"{request.model} {active.version} is not active any more: look, and ask again")
            host.activate(manifest.version)
        log.info(
            "rolled back",
            model=request.model,
            version=manifest.version,
            previous=active.version,
            reason=request.reason,
        )
        return model_pb2.RollbackResponse(version=_info(host, manifest), previous_version=active.version)

    async def SetCanary(self, request: model_pb2.SetCanaryRequest, context: Context) -> model_pb2.SetCanaryResponse:
        if (worker := self._worker_of(request.model)) is not None:
            return await worker.set_canary(request, context)
        return model_pb2.SetCanaryResponse(version=await self._set_role("canary", request))

    async def SetShadow(self, request: model_pb2.SetShadowRequest, context: Context) -> model_pb2.SetShadowResponse:
        return model_pb2.SetShadowResponse(version=await self._set_role("shadow", request))

    async def WatchVersions(
        self, request: model_pb2.WatchVersionsRequest, context: Context
    ) -> AsyncIterator[model_pb2.WatchVersionsResponse]:
        if (worker := self._worker_of(request.model)) is not None:
            async for reply in worker.watch_versions(request, context):
                yield reply
            return
        host = self._hosts[request.model]
        async for manifest in host.changes():
            yield model_pb2.WatchVersionsResponse(active=_info(host, manifest))

    async def _set_role(
        self, role: VersionRole, request: model_pb2.SetCanaryRequest | model_pb2.SetShadowRequest
    ) -> model_pb2.VersionInfo | None:
        """Give or end a role, and return the version that has it now, or None if it was ended."""
        _check_role(role, request)
        if request.model not in self._hosts:
            raise self._unknown()
        host = self._hosts[request.model]
        expected = _expected(request)
        if not request.version:
            async with host.changing():
                await self._pointer.end(request.model, role, request.reason, expected)
                host.end(role)
            log.info(f"{role} ended", model=request.model, reason=request.reason)
            return None
        holder = Share(request.version, request.share)
        async with host.changing():
            active = _active(host, request.model)
            manifest = active if active.version == holder.version else await host.warm(holder.version)
            if not await self._pointer.assign(request.model, role, holder, request.reason, expected):
                raise InvalidRequest([Violation("version", f"{holder.version} is the active version")])
            host.assign(role, holder)
        log.info(f"{role} set", model=request.model, version=holder.version, share=holder.share, reason=request.reason)
        return _info(host, manifest)

    def _worker_of(self, model: str) -> PolicyWorkerLink | None:
        """Return the link if the worker hosts the model, None if this process does. Raises InvalidRequest."""
        if model in self._hosts:
            return None
        if model == POLICY and self._worker is not None:
            return self._worker
        raise self._unknown()

    def _unknown(self) -> InvalidRequest:
        return InvalidRequest([Violation("model", f"not one of {', '.join(self._names)}")])

    @property
    def _names(self) -> tuple[str, ...]:
        """The models of which this process can be asked."""
        return tuple(self._hosts) if self._worker is None else (*self._hosts, POLICY)

    async def _manifest(self, model: str, version: str) -> Manifest:
        try:
            return await asyncio.to_thread(self._store.manifest, model, version)
        except VersionNotFound as error:
            raise UnknownVersion(str(error)) from error
        except CorruptVersion as error:
            raise refusal(error) from error


def _check_role(role: VersionRole, request: model_pb2.SetCanaryRequest | model_pb2.SetShadowRequest) -> None:
    """Check the request. Raises InvalidRequest.

    The policy has no shadow, because an answer that was not shown cannot be compared with anything.
    """
    if role == "shadow" and request.model == POLICY:
        raise InvalidRequest([Violation("model", "only reward models take a shadow")])
    is_valid = 0 < request.share < 1 or (role == "shadow" and request.share == 1)  # false for NaN
    if request.version and not is_valid:
        bounds = "above 0 and below 1" if role == "canary" else "above 0 and at most 1"
        raise InvalidRequest([Violation("share", f"not {bounds}")])


def _expected(
    request: model_pb2.PromoteRequest | model_pb2.SetCanaryRequest | model_pb2.SetShadowRequest,
) -> str | None:
    return request.expected_version if request.HasField("expected_version") else None


def _active(host: ModelHost, model: str) -> Manifest:
    if host.active is None:
        raise NoModel(f"no version of {model} is active here yet")
    return host.active


def _readable_versions(store: ModelStore, model: str) -> list[tuple[Manifest, Evaluated | None]]:
    """Return the manifests, newest first, and what evaluations found.

    A broken manifest is logged and left out, so that it does not hide the others.
    """
    manifests = []
    for version in reversed(store.versions(model)):
        try:
            manifests.append(store.manifest(model, version))
        except (VersionNotFound, CorruptVersion) as error:
            log.warning("version left out of the list", model=model, version=version, error=str(error))
    try:
        evaluated, failed = store.evaluated.read_each(model, {each.version: each.digest for each in manifests})
    except EvaluatedError as error:
        log.warning("no evaluation is shown", model=model, error=str(error))
        evaluated, failed = {}, {}
    for number, failure in failed.items():
        log.warning("an evaluation is not shown", model=model, version=number, error=str(failure))
    return [(manifest, evaluated.get(manifest.version)) for manifest in manifests]


def _evaluated(store: ModelStore, manifest: Manifest) -> Evaluated | None:
    """Return what evaluations found; None also if it cannot be read, because a version is shown without it."""
    try:
        return store.evaluated.read(manifest.model, manifest.version, manifest.digest)
    except EvaluatedError as error:
        log.warning("an evaluation is not shown", model=manifest.model, version=manifest.version, error=str(error))
        return None


def _info(host: ModelHost, manifest: Manifest, evaluated: Evaluated | None = None) -> model_pb2.VersionInfo:
    info = model_pb2.VersionInfo(
        model=manifest.model,
        version=common_pb2.ModelVersion(version=manifest.version, digest=manifest.digest),
        state=host.state(manifest.version),
        parent_version=manifest.parent or "",
        metrics=manifest.metrics,
    )
    if manifest.created_at:
        info.create_time.FromDatetime(datetime.fromisoformat(manifest.created_at))
    if evaluated is not None:
        info.evaluation.evaluate_time.FromMilliseconds(round(1000 * evaluated.time))
        info.evaluation.against, info.evaluation.report_id = evaluated.against, evaluated.report_id
        info.evaluation.figures.update(evaluated.figures)
    return info
