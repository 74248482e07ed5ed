"""What Redis URLs say."""

from __future__ import annotations

import pytest

from rewardloop.formats.redis_url import InvalidRedisUrl, RedisAddress, RedisUrl, parse_redis_url
from rewardloop.process.settings import InvalidSettings, ProcessSettings
from rewardloop.process.settings_origin import effective_settings


class Needy(ProcessSettings):
    redis_url: RedisUrl


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://127.0.0.1:7000/3", RedisAddress("server", (("127.0.0.1", 7000),), db=3)),
        ("redis://cache", RedisAddress("server", (("cache", 6379),))),
        ("redis://[::1]:7000", RedisAddress("server", (("::1", 7000),))),
        ("unix:///run/redis.sock?db=2", RedisAddress("server", path="/run/redis.sock", db=2)),
        (
            "unix://me:a%2Fb@/run/a%20b@c/redis.sock",
            RedisAddress("server", path="/run/a b@c/redis.sock", username="me", password="a/b"),
        ),
        ("redis://:pass@cache", RedisAddress("server", (("cache", 6379),), password="pass")),
        (
            "rediss://me:a%2Fb%40c@cache:6380?ssl_ca_certs=/ca.crt&ssl_check_hostname=no",
            RedisAddress(
                "server",
                (("cache", 6380),),
                username="me",
                password="a/b@c",
                is_tls=True,
                ca_certs="/ca.crt",
                check_hostname=False,
            ),
        ),
        (
            "redis+sentinel://a:1,b,[::1]:3/main/1?sentinel_password=x",
            RedisAddress("sentinel", (("a", 1), ("b", 26379), ("::1", 3)), service="main", db=1, sentinel_password="x"),
        ),
        (
            "rediss+cluster://me:x@a:1,b:2",
            RedisAddress("cluster", (("a", 1), ("b", 2)), username="me", password="x", is_tls=True),
        ),
    ],
)
def test_url_is_read(url: str, address: RedisAddress) -> None:
    assert parse_redis_url(url) == address


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("localhost:6379", "is not one of redis"),
        ("http://a", "is not one of redis"),
        ("redis://a,b", "one host, not 2"),
        ("redis://", "one host, not 0"),
        ("redis://a:port", "is not the number of"),
        ("redis://a:99999", "is not the number of"),
        ("redis://a/main", "is not the number of"),
        ("redis://a/0/1", "must be only the number of the database"),
        ("redis+sentinel://a:1", "/SERVICE"),
        ("redis+cluster://a:1/2", "database 0 only"),
        ("redis://a?ssl_ca=x", "unknown parameter; known are db, ssl_ca_certs"),
    ],
)
def test_wrong_url_is_refused_with_a_reason_and_without_its_password(url: str, says: str) -> None:
    with pytest.raises(InvalidRedisUrl, match=says) as error:
        parse_redis_url(url.replace("//", "//me:s3cret@", 1))
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://u:SEK/RIT@host/0",
        "redis://u:SEK#RIT@host/0",
        "redis://u:SEK?RIT@host/0",
        "redis://u:SEK?token=RIT@host/0",
        "redis://u:12/RIT@host",
        "redis://u:12#RIT@host",
        "redis://u:12?db=RIT@host",
        "redis://u:[SEK]RIT@host",
        "redis://u:SEK\u2100RIT@host",
        "redis://u:SEK:RIT",
        "redis://:SEKRIT",
        "redis:SEKRIT@host",
        "redis:/u:SEKRIT@host",
        "SEKRIT://u@host",
        "rediss+cluster://u:SEK/RIT@a,b",
        "redis+sentinel://u:SEK/RIT/x@a/main",
        "redis+sentinel://a/s/0?sentinel_password=SEK&RIT",
        "redis+sentinel://a/s/SEKRIT",
        "unix:///run/redis.sock?password=SEKRIT",
        "unix://u:SEK/RIT@/run/redis.sock",
        "unix://u:SEK@RIT@/run/redis.sock",
        "unix://u:SEK/RIT@x/run/redis.sock",
        "unix:///run/redis.sock?db=SEKRIT",
        f"redis://u:{'7' * 5000}SEKRIT",
        f"redis://host:{'7' * 5000}",
    ],
)
def test_no_error_quotes_a_part_of_the_password(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InvalidRedisUrl) as error:
        parse_redis_url(url)
    with pytest.raises(InvalidSettings):
        effective_settings(Needy, ["--redis-url", url], "needy")
    shown = capsys.readouterr()
    for text in (str(error.value), shown.out, shown.err):
        assert not [part for part in ("SEK", "RIT", "777") if part in text]
    assert "redis_url" in shown.err


def test_repr_of_an_address_has_no_user_and_no_password() -> None:
    for url in ("redis://SEKRIT@host", "redis://SEKRIT:SEKRIT@host", "redis+sentinel://a/s?sentinel_password=SEKRIT"):
        assert "SEKRIT" not in repr(parse_redis_url(url))
