"""``rewardloop backup``: copies what a deployment keeps while it runs."""

from __future__ import annotations

from collections.abc import Sequence

from rewardloop.process.settings import parse
from rewardloop_local.backup.command import finish, say, with_flag
from rewardloop_local.backup.settings import BackupSettings


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 if the backup is whole, 1 if there is none."""
    settings = parse(BackupSettings, with_flag(argv), "rewardloop backup")
    return finish("rewardloop backup", lambda: _back_up(settings))


def _back_up(settings: BackupSettings) -> str:
    from rewardloop_local.backup.bundle import new_bundle
    from rewardloop_local.backup.deployment_places import places_of
    from rewardloop_local.backup.errors import BackupError
    from rewardloop_local.backup.take import Backup
    from rewardloop_local.data_redis import redis_of

    places = places_of(settings)
    if any(place.part == "models" and not place.files() for place in places):
        raise BackupError("there is nothing to back up: the model store has no versions; name --data or --store")
    with redis_of(settings.data, settings.redis_url) as client:
        contents = Backup(places, client, new_bundle(settings.backup), say).take()
    return f"{settings.backup}: {len(contents.files)} files, {contents.size / 2**20:,.1f} MiB, {contents.created_at}"


if __name__ == "__main__":
    raise SystemExit(main())
