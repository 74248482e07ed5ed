"""Parses the arguments of `rewardloop backup` and `rewardloop restore`, and ends both commands."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence


def with_flag(argv: Sequence[str] | None) -> list[str]:
    """Return the arguments of a command with a flag for the first one, which is the backup if it is no flag itself."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and not arguments[0].startswith("-"):
        arguments[0] = f"--backup={arguments[0]}"
    return arguments


def finish(prog: str, work: Callable[[], str]) -> int:
    """Do the work and print what it returns, or one line that says why it failed. Returns the exit status."""
    import redis
    from redis.exceptions import RedisClusterException

    from rewardloop_local.backup.errors import BackupError
    from rewardloop_local.data_redis import NoSuchRedis

    try:
        print(work())
    except (BackupError, NoSuchRedis) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 1
    except (redis.RedisError, RedisClusterException) as error:
        print(f"{prog}: Redis: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 1
    return 0


def say(text: str) -> None:
    """Tell a person how far the work is."""
    print(text, file=sys.stderr)
