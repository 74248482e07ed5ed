"""The settings of `rewardloop dead-letters`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rewardloop.formats.redis_url import RedisUrl
from rewardloop.process.settings import ProcessSettings


class DeadLettersSettings(ProcessSettings):
    """Shows the signals that the trainer could not read, appends them to the stream again, or drops them."""

    basic_settings = ("redis_url", "action", "id", "all", "output")
    setting_groups = (("redis_url", "Which letters, and what is done with them"),)

    redis_url: RedisUrl = Field("redis://127.0.0.1:6379/0", description="Redis with the feedback stream")
    action: Literal["list", "show", "requeue", "drop"] = Field(
        "list",
        description="list: one line for each; show: the whole signal; requeue: append it to the stream again, as if it"
        " had just come; drop: delete it for good",
    )
    id: str = Field("", description="the letter, by the id that list prints")
    all: bool = Field(False, description="every letter; list needs neither this nor --id")
    output: Literal["table", "json"] = Field("table", description="how letters are printed; json: one object a line")
