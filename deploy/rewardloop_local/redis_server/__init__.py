"""The embedded Redis: which program it is, who may reach it, and how it is started and stopped."""

from rewardloop_local.redis_server.binary import RedisServerError as RedisServerError
from rewardloop_local.redis_server.binary import find_redis_server as find_redis_server
from rewardloop_local.redis_server.server import EmbeddedRedis as EmbeddedRedis
