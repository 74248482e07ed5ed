"""Feedback events for tests, and a Redis stream to put them into."""

from __future__ import annotations

import redis

from rewardloop.formats import keys
from rewardloop.v1 import common_pb2, feedback_pb2


def choice(number: int, prompts: int = 50) -> feedback_pb2.FeedbackEvent:
    """Event ``e<number>``: the second of two responses to one of ``prompts`` questions was chosen."""
    event = feedback_pb2.FeedbackEvent(
        event_id=f"e{number}",
        prompt=common_pb2.Prompt(text=f"question {number % prompts}"),
        responses=[f"poor answer {number}", f"good answer {number}"],
        choice=feedback_pb2.Choice(chosen=1, rejected=0),
        source=feedback_pb2.SOURCE_HUMAN,
    )
    event.arrival_time.FromMilliseconds(1_700_000_000_000 + number)
    return event


def put(client: redis.Redis, *events: feedback_pb2.FeedbackEvent) -> list[str]:
    """Append to the stream as the server does; returns the stream ids."""
    with client.pipeline(transaction=False) as pipe:
        for event in events:
            fields = {keys.EVENT_FIELD: event.SerializeToString(), keys.ID_FIELD: event.event_id}
            pipe.xadd(keys.FEEDBACK_STREAM, fields)  # type: ignore[arg-type]
        return [stream_id.decode() for stream_id in pipe.execute()]
