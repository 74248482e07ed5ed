"""The active pointers in a real redis-server."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from redis.asyncio import Redis

from rewardloop.formats import keys
from rewardloop.formats.store import ModelStore
from rewardloop.formats.storing.active import Active, Share
from rewardloop_local.redis_server import EmbeddedRedis
from rewardloop_server.calls.errors import Overtaken, PromotionHeld, RedisUnavailable
from rewardloop_server.calls.redis_link import connect_redis
from rewardloop_server.versions.pointer import ActivePointer


@pytest.fixture
def pointer(redis: Redis) -> ActivePointer:
    return ActivePointer(redis)


async def test_model_without_a_version_has_no_pointer(pointer: ActivePointer) -> None:
    assert await pointer.read("reward") is None


async def test_move_remembers_what_was_active(pointer: ActivePointer) -> None:
    assert await pointer.move("reward", "1", "first") is None
    assert await pointer.move("reward", "2", "better") == "1"
    assert await pointer.move("reward", "5", "better still") == "2"
    assert await pointer.read("reward") == Active("5", ("2", "1"))
    assert await pointer.read("policy") is None


async def test_value_says_why_and_when(pointer: ActivePointer, redis: Redis) -> None:
    await pointer.move("reward", "1", 'said "so"\nand é')
    value = json.loads(await redis.hget(keys.ACTIVE, "reward") or "")
    assert value["reason"] == 'said "so"\nand é'
    assert value["previous"] == []
    assert value["changed_at"].endswith("+00:00")


async def test_moving_to_the_active_version_changes_nothing(pointer: ActivePointer) -> None:
    await pointer.move("reward", "1", "")
    await pointer.move("reward", "2", "")
    assert await pointer.move("reward", "2", "again") == "2"
    assert await pointer.read("reward") == Active("2", ("1",))


async def test_leader_that_was_overtaken_moves_nothing(pointer: ActivePointer, redis: Redis) -> None:
    await redis.set(keys.TRAINER_EPOCH, 5)
    await pointer.move("reward", "1", "first", leader_epoch=4)
    await pointer.move("reward", "2", "by the next leader", leader_epoch=5)
    for version in ("1", "2", "3"):
        with pytest.raises(Overtaken):
            await pointer.move("reward", version, "by the one before", leader_epoch=4)
    assert await pointer.read("reward") == Active("2", ("1",))
    await pointer.move("policy", "7", "each model has its own", leader_epoch=4)
    await pointer.move("reward", "3", "again", leader_epoch=5)
    await pointer.move("reward", "1", "by hand")  # an operator is not held to it
    assert await pointer.move_back("reward", "1", "3", "by hand")
    with pytest.raises(Overtaken):
        await pointer.move("reward", "1", "by the one before", leader_epoch=4)
    assert await pointer.read("reward") == Active("3", ("2", "1"), is_held=True)


async def test_moving_back_goes_further_back_each_time(pointer: ActivePointer) -> None:
    for version in ("1", "2", "3"):
        await pointer.move("reward", version, "")
    assert await pointer.move_back("reward", "3", "2", "worse")
    assert await pointer.read("reward") == Active("2", ("1",), is_held=True)
    assert await pointer.move_back("reward", "2", "1", "worse")
    active = await pointer.read("reward")
    assert active == Active("1", (), is_held=True)
    assert active.rollback_target is None


async def test_promoting_an_older_version_can_be_rolled_back(pointer: ActivePointer) -> None:
    for version in ("1", "2", "1"):
        await pointer.move("reward", version, "")
    active = await pointer.read("reward")
    assert active is not None
    assert active.rollback_target == "2"


async def test_moving_back_from_a_version_that_is_not_active_is_refused(pointer: ActivePointer) -> None:
    await pointer.move("reward", "1", "")
    await pointer.move("reward", "2", "")
    await pointer.move("reward", "3", "another caller")
    assert not await pointer.move_back("reward", "2", "1", "late")
    assert await pointer.read("reward") == Active("3", ("2", "1"))


async def test_canary_and_shadow_stand_beside_the_active_version(pointer: ActivePointer, redis: Redis) -> None:
    for version in ("1", "2"):
        await pointer.move("reward", version, "")
    assert await pointer.assign("reward", "canary", Share("3", 0.05), 'said "so"')
    assert await pointer.assign("reward", "shadow", Share("4", 1.0), "")
    assert await pointer.read("reward") == Active("2", ("1",), Share("3", 0.05), Share("4", 1.0))
    assert await pointer.assign("reward", "canary", Share("5", 1 / 3), "")
    assert await pointer.read("reward") == Active("2", ("1",), Share("5", 1 / 3), Share("4", 1.0))
    await pointer.end("reward", "shadow", "seen enough")
    assert await pointer.read("reward") == Active("2", ("1",), Share("5", 1 / 3))
    assert json.loads(await redis.hget(keys.ACTIVE, "reward") or "")["reason"] == "seen enough"


async def test_every_promotion_and_rollback_ends_canary_and_shadow(pointer: ActivePointer) -> None:
    for version in ("1", "2"):
        await pointer.move("reward", version, "")
    for move in (
        lambda: pointer.move("reward", "3", ""),
        lambda: pointer.move("reward", "3", "the same again"),
        lambda: pointer.move_back("reward", "3", "2", ""),
    ):
        await pointer.assign("reward", "canary", Share("8", 0.5), "")
        await pointer.assign("reward", "shadow", Share("9", 0.5), "")
        await move()
        active = await pointer.read("reward")
        assert active is not None
        assert (active.canary, active.shadow) == (None, None)
    assert await pointer.read("reward") == Active("2", ("1",), is_held=True)


async def test_active_version_takes_no_role_beside_itself(pointer: ActivePointer) -> None:
    assert not await pointer.assign("reward", "canary", Share("1", 0.5), "nothing is active")
    assert await pointer.read("reward") is None
    await pointer.move("reward", "1", "")
    assert not await pointer.assign("reward", "canary", Share("1", 0.5), "")
    assert not await pointer.assign("reward", "shadow", Share("1", 0.5), "")
    assert await pointer.read("reward") == Active("1")


async def test_role_given_first_thing_leaves_the_list_of_previous_versions_a_list(
    pointer: ActivePointer, redis: Redis
) -> None:
    await pointer.initialise("reward", "1")
    await pointer.assign("reward", "canary", Share("2", 0.5), "")
    assert json.loads(await redis.hget(keys.ACTIVE, "reward") or "")["previous"] == []
    assert await pointer.move("reward", "2", "") == "1"


async def test_previous_versions_are_bounded(pointer: ActivePointer) -> None:
    for version in range(1, 31):
        await pointer.move("reward", str(version), "")
    active = await pointer.read("reward")
    assert active == Active("30", tuple(str(v) for v in range(29, 9, -1)))


async def test_first_version_is_set_once(pointer: ActivePointer) -> None:
    await pointer.initialise("reward", "4")
    await pointer.initialise("reward", "9")
    assert await pointer.read("reward") == Active("4", ())
    assert await pointer.move("reward", "9", "") == "4"


async def test_moves_at_once_lose_no_version(pointer: ActivePointer) -> None:
    await asyncio.gather(*(pointer.move("reward", str(version), "") for version in range(15)))
    active = await pointer.read("reward")
    assert active is not None
    assert sorted([active.version, *active.previous]) == sorted(str(version) for version in range(15))


async def test_redis_away_is_unavailable(fresh_redis: EmbeddedRedis) -> None:
    redis = connect_redis(fresh_redis.url)
    pointer = ActivePointer(redis)
    await pointer.move("reward", "1", "")
    fresh_redis.kill()
    for call in (pointer.read("reward"), pointer.move("reward", "2", ""), pointer.initialise("reward", "3")):
        with pytest.raises(RedisUnavailable):
            await call
    fresh_redis.start()
    assert await pointer.read("reward") == Active("1", ())
    await redis.aclose()


async def test_lost_pointer_is_put_back_whole(pointer: ActivePointer, redis: Redis) -> None:
    for version in ("3", "4", "9"):
        await pointer.move("reward", version, "")
    assert await pointer.move_back("reward", "9", "4", "worse")
    await pointer.assign("reward", "canary", Share("5", 0.1), "")
    await pointer.assign("reward", "shadow", Share("6", 1.0), "")
    known = await pointer.read("reward")
    assert known == Active("4", ("3",), canary=Share("5", 0.1), shadow=Share("6", 1.0), is_held=True)
    before = await redis.hget(keys.ACTIVE, "reward")
    await redis.flushall()
    assert await pointer.read("reward") == known
    assert await redis.hget(keys.ACTIVE, "reward") == before
    await redis.flushall()
    assert await pointer.move_back("reward", "4", "3", "worse"), "a move finds what was lost"
    assert await pointer.read("reward") == Active("3", (), is_held=True)


async def test_earlier_pointer_is_never_followed(pointer: ActivePointer, redis: Redis) -> None:
    for version in ("1", "2"):
        await pointer.move("reward", version, "")
    earlier = await redis.hget(keys.ACTIVE, "reward")
    await pointer.move_back("reward", "2", "1", "worse")
    for _ in range(2):
        await redis.hset(keys.ACTIVE, "reward", earlier or b"")
        assert await pointer.read("reward") == Active("1", (), is_held=True)
        assert Active.from_json(await redis.hget(keys.ACTIVE, "reward") or b"").version == "1"


async def test_store_and_redis_are_repaired_by_the_later_one(redis: Redis, tmp_path: Path) -> None:
    copies = ModelStore(tmp_path).pointers
    first = ActivePointer(redis, copies)
    for version in ("1", "2"):
        await first.move("reward", version, "")
    await first.move_back("reward", "2", "1", "worse")
    assert copies.read("reward") == Active("1", (), is_held=True)
    assert (copies.read("reward") or Active("")).rejected == ("2",)
    await redis.flushall()
    assert await ActivePointer(redis, copies).read("reward") == Active("1", (), is_held=True)
    assert Active.from_json(await redis.hget(keys.ACTIVE, "reward") or b"").epoch == 3
    (tmp_path / "reward" / "pointer.json").unlink()
    assert await ActivePointer(redis, copies).read("reward") == Active("1", (), is_held=True)
    assert (copies.read("reward") or Active("")).epoch == 3


async def test_lost_pointer_does_not_begin_again_while_the_copy_cannot_be_read(redis: Redis, tmp_path: Path) -> None:
    copies = ModelStore(tmp_path).pointers
    (tmp_path / "reward").mkdir()
    (tmp_path / "reward" / "pointer.json").write_text("{")
    pointer = ActivePointer(redis, copies)
    for call in (pointer.read("reward"), pointer.initialise("reward", "9")):
        with pytest.raises(RedisUnavailable):
            await call
    await ActivePointer(redis).move("reward", "4", "by a server without a store")
    await asyncio.gather(pointer.read("reward"), pointer.read("reward"))
    assert copies.read("reward") == Active("4"), "a copy that is of no use is replaced"


async def test_leader_does_not_promote_what_a_person_rejected(pointer: ActivePointer, redis: Redis) -> None:
    await redis.set(keys.TRAINER_EPOCH, 2)
    await pointer.move("reward", "1", "first")
    await pointer.move("reward", "2", "by a trainer", leader_epoch=1)
    await pointer.move_back("reward", "2", "1", "worse")
    await pointer.move("reward", "1", "this one stays")  # ends the hold
    for epoch in (1, 2):
        with pytest.raises(PromotionHeld):
            await pointer.move("reward", "2", "once more", leader_epoch=epoch, expected="1")
    await pointer.move("reward", "3", "the next one", leader_epoch=2, expected="1")
    await pointer.move("reward", "2", "a person wants it after all")
    await pointer.move("reward", "1", "and back")
    await pointer.move("reward", "2", "now a trainer may, too", leader_epoch=2)
    assert await pointer.read("reward") == Active("2", ("1", "2", "3", "1"))


async def test_pointer_of_an_earlier_release_is_taken_over(redis: Redis) -> None:
    def written(version: str, changed_at: str) -> str:
        return json.dumps({"version": version, "previous": ["1"], "changed_at": changed_at, "reason": "by hand"})

    await redis.hset(keys.ACTIVE, "reward", written("2", "2026-11-01T00:00:00.000+00:00"))
    await redis.hset(keys.PROMOTED_BY, "reward", 7)
    await redis.set(keys.TRAINER_EPOCH, 7)
    pointer = ActivePointer(redis)
    assert await pointer.read("reward") == Active("2", ("1",))
    found = Active.from_json(await redis.hget(keys.ACTIVE, "reward") or b"")
    assert (found.epoch, found.promoted_by) == (1, 7)
    with pytest.raises(Overtaken):
        await pointer.move("reward", "3", "", leader_epoch=6)
    # While servers are replaced one by one, an earlier one still moves the pointer; an old state is no move.
    await redis.hset(keys.ACTIVE, "reward", written("3", "2026-11-02T00:00:00.000+00:00"))
    assert await pointer.read("reward") == Active("3", ("1",))
    await redis.hset(keys.ACTIVE, "reward", written("9", "2026-11-01T12:00:00.000+00:00"))
    assert await pointer.read("reward") == Active("3", ("1",))
