"""``rewardloop restore``: puts a backup back into empty places."""

from __future__ import annotations

from collections.abc import Sequence

from rewardloop.process.settings import parse
from rewardloop_local.backup.command import finish, say, with_flag
from rewardloop_local.backup.settings import RestoreSettings


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 if all of the backup is there, 1 if not."""
    settings = parse(RestoreSettings, with_flag(argv), "rewardloop restore")
    return finish("rewardloop restore", lambda: _restore(settings))


def _restore(settings: RestoreSettings) -> str:
    from rewardloop_local.backup.bundle import BundleReader
    from rewardloop_local.backup.deployment_places import places_of
    from rewardloop_local.backup.put_back import Restore
    from rewardloop_local.data_redis import redis_of

    with (
        BundleReader(settings.backup) as reader,
        redis_of(settings.data, settings.redis_url, is_restored=True) as client,
    ):
        keys = Restore(places_of(settings), client, reader, say).put_back(replace=settings.replace)
        contents = reader.contents
    return f"restored the backup of {contents.created_at}: {len(contents.files)} files, {keys} keys of Redis"


if __name__ == "__main__":
    raise SystemExit(main())
