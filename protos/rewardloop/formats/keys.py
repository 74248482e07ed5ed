"""Every Redis key of rewardloop. Those that one script or transaction touches share a hash tag, as Cluster demands.

rewardloop:{feedback}:events              stream: one entry a signal. Fields: EVENT_FIELD, a serialized
                                          rewardloop.v1.FeedbackEvent, ID_FIELD, its event_id, and TRACE_FIELD, the
                                          W3C traceparent that it was sent in, where there was one. Appended by the
                                          server, read by the consumer group `trainer`, trimmed only once archived.
rewardloop:{feedback}:seen:<event_id>     string: the stream id under which that event_id was appended. Expires.
rewardloop:{feedback}:count:<window>:<hash>  integer: signals of one annotator in a minute or a day. Expires.
rewardloop:{feedback}:judged:<hash>       set: hashes of what one annotator said about one generation. Expires.
rewardloop:{feedback}:dead                stream: entries that cannot be read. Fields: `event`, the bytes as they
                                          were, `reason`, and `source_id`, the entry's id in the first stream.
rewardloop:{feedback}:suspect             string: id of an entry that the trainer reads alone, because it was read
                                          several times and never archived. Found at a start, it ended the process.
rewardloop:{generation}:<generation_id>   string: a serialized rewardloop.v1.Generation. Expires.
rewardloop:{secrets}:generation           list: keys in hex that sign generation ids, newest first; two are read.
rewardloop:{models}:active                hash: model name to JSON {"version": "7", "previous": ["6", ...] newest
                                          first, "changed_at": ISO 8601 in UTC, "reason": text}, and while there
                                          are such, "canary" and "shadow": {"version": "8", "share": 0.05}, the
                                          share of the requests, above 0 and at most 1.
rewardloop:{models}:promoted_by           hash: model name to the epoch of the latest leader whose promotion of it was
                                          taken.
rewardloop:{models}:first_served:<digest> string: Unix seconds at which any server first answered with that digest.
rewardloop:{trainer}:leader               string: random token of the trainer that leads. Expires unless renewed.
rewardloop:{trainer}:epoch                integer: how many trainers have led; the leader's is the highest.
"""

from __future__ import annotations

from typing import Final

FEEDBACK_STREAM: Final = "rewardloop:{feedback}:events"
EVENT_FIELD: Final = "event"
ID_FIELD: Final = "id"
TRACE_FIELD: Final = "trace"
# Prefix; an event_id follows.
FEEDBACK_SEEN: Final = "rewardloop:{feedback}:seen:"
# Prefixes; a window and a hash of the annotator, and a hash of generation and annotator, follow.
FEEDBACK_COUNT: Final = "rewardloop:{feedback}:count:"
FEEDBACK_JUDGED: Final = "rewardloop:{feedback}:judged:"
FEEDBACK_GROUP: Final = "trainer"
SUSPECT: Final = "rewardloop:{feedback}:suspect"
DEAD_LETTERS: Final = "rewardloop:{feedback}:dead"
DEAD_EVENT_FIELD: Final = "event"
DEAD_REASON_FIELD: Final = "reason"
DEAD_SOURCE_FIELD: Final = "source_id"

# Prefix; a generation_id follows.
GENERATION: Final = "rewardloop:{generation}:"
# Not under that prefix: what follows it comes from callers.
GENERATION_KEYS: Final = "rewardloop:{secrets}:generation"

ACTIVE: Final = "rewardloop:{models}:active"
PROMOTED_BY: Final = "rewardloop:{models}:promoted_by"
# Prefix; a version's digest follows.
FIRST_SERVED: Final = "rewardloop:{models}:first_served:"

TRAINER_LOCK: Final = "rewardloop:{trainer}:leader"
TRAINER_EPOCH: Final = "rewardloop:{trainer}:epoch"
