"""``rewardloop models prune``: deletes versions that nothing needs any more, and says what it keeps."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rewardloop.process.settings import parse
from rewardloop_local.prune.settings import PruneSettings

if TYPE_CHECKING:
    import redis

    from rewardloop.formats.store import ModelStore


class CannotPrune(Exception):
    """Raised when it is not known what is in use. Nothing was deleted."""


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 if nothing is left to delete, 1 if it is not known what is in use."""
    settings = parse(PruneSettings, sys.argv[1:] if argv is None else argv, "rewardloop models prune")

    import redis
    from redis.exceptions import RedisClusterException

    from rewardloop.formats.store import ModelStore, StoreError
    from rewardloop_local.data_redis import NoSuchRedis, redis_of
    from rewardloop_local.plan import DeploymentPlan

    try:
        store = ModelStore(settings.store or DeploymentPlan(settings.data).store)
        with redis_of(settings.data, settings.redis_url) as client:
            _prune(store, client, settings)
    except (CannotPrune, NoSuchRedis, StoreError, OSError, ValueError) as error:
        print(f"rewardloop models prune: {error}", file=sys.stderr)
        return 1
    except (redis.RedisError, RedisClusterException) as error:
        print(f"rewardloop models prune: Redis: {error}", file=sys.stderr)
        return 1
    return 0


def _prune(store: ModelStore, client: redis.Redis, settings: PruneSettings) -> None:
    # What every model keeps is known before the first version is deleted.
    plans = {model: _kept(store, client, model, settings) for model in store.models()}
    if not plans:
        raise CannotPrune(f"{store.url} has no versions: name --data or --store")
    deleted: dict[str, list[str]] = {}
    for model, kept in plans.items():
        deleted[model] = []
        for version in [str(number) for number in store.versions(model) if str(number) not in kept]:
            # Somebody may have promoted it meanwhile.
            if not settings.dry_run and version in _kept(store, client, model, settings):
                kept[version] = "in use since a moment ago"
                continue
            if not settings.dry_run:
                store.prune(model, version)
            deleted[model].append(version)
        if not settings.dry_run:
            store.sweep(model)
    if settings.json_output:
        print(json.dumps({model: {"kept": plans[model], "deleted": deleted[model]} for model in plans}, indent=2))
        return
    for model, kept in plans.items():
        for version, reason in sorted(kept.items(), key=lambda item: int(item[0])):
            print(f"{model} {version} stays: {reason}")
        done = "would be deleted" if settings.dry_run else "deleted"
        print(
            f"{model}: {len(deleted[model])} versions {done}"
            + (f": {', '.join(deleted[model])}" * bool(deleted[model]))
        )


def _kept(store: ModelStore, client: redis.Redis, model: str, settings: PruneSettings) -> dict[str, str]:
    from rewardloop.formats import keys
    from rewardloop_local.prune.kept_versions import Pointer, reasons_to_keep

    raw = client.hget(keys.ACTIVE, model)
    if raw is None:
        raise CannotPrune(f"Redis names no active version of {model}, so that it is not known what is in use")
    try:
        pointer = Pointer.of(raw)  # type: ignore[arg-type]  # redis-py's types are unions over every decoding
    except (ValueError, KeyError, TypeError) as error:
        raise CannotPrune(f"Redis's pointer of {model} cannot be read: {error!r}") from error
    if int(pointer.version) not in store.versions(model):
        raise CannotPrune(
            f"the store has no {model} version {pointer.version}, which Redis names: another deployment's?"
        )
    pins = [pin.partition(":")[2] for pin in settings.pin if pin.partition(":")[0] == model]
    return reasons_to_keep(store, model, pointer, newest=settings.keep, rollbacks=settings.rollbacks, pins=pins)


if __name__ == "__main__":
    raise SystemExit(main())
