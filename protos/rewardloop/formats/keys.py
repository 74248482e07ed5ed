"""Every Redis key of rewardloop. Keys that one script or transaction uses share a hash tag, as Redis Cluster demands.

rewardloop:{feedback}:events              stream: one entry for each signal. Fields: EVENT_FIELD, a serialized
                                          rewardloop.v1.FeedbackEvent, ID_FIELD, its event_id, and TRACE_FIELD, the
                                          W3C traceparent of its request, if there was one. The server appends, the
                                          consumer group `trainer` reads, and only archived entries are trimmed.
rewardloop:{feedback}:seen:<event_id>     string: the stream id under which that event_id was appended. Expires.
rewardloop:{feedback}:count:<window>:<hash>  integer: signals of one annotator in a minute or a day. Expires.
rewardloop:{feedback}:judged:<hash>       set: hashes of one annotator's signals about one generation. Expires.
rewardloop:{feedback}:dead                stream: entries that cannot be read. Fields: `event`, the bytes as they
                                          were, `reason`, and `source_id`, the entry's id in the first stream.
rewardloop:{feedback}:suspect             string: id of an entry that the trainer reads alone, because it was read
                                          several times and never archived. A trainer that finds it at its start
                                          knows that this entry ended the process.
rewardloop:{generation}:<generation_id>   string: a serialized rewardloop.v1.Generation. Expires.
rewardloop:{secrets}:generation           list: keys in hex that sign generation ids, newest first; two are read.
rewardloop:{feedback}:barrier             string: empty. Set before a WAIT for replicas.
rewardloop:{models}:active                hash: model name to the JSON of `storing.active.Active`: {"version": "7",
                                          "previous": ["6", ...] newest first, "changed_at": ISO 8601 in UTC,
                                          "reason": text, "epoch": how often it has changed}. Also "held": true while
                                          a rollback holds the promotions of trainers; "rejected": ["8", ...], what
                                          people rolled back; "promoted_by": the epoch of the latest leader that has
                                          promoted a version; and while there is a canary or shadow, "canary" or
                                          "shadow": {"version": "8", "share": 0.05}, with a share of the requests
                                          above 0 and at most 1. The model store holds a copy.
rewardloop:{models}:barrier               string: empty. Set before a WAIT for replicas.
rewardloop:{models}:promoted_by           hash: model name to the epoch of the latest leader, as earlier releases
                                          wrote it. Read if the pointer has no epoch.
rewardloop:{models}:first_served:<digest> string: Unix seconds at which any server first answered with that digest.
rewardloop:{trainer}:leader               string: random token of the trainer that leads. Expires unless renewed.
rewardloop:{trainer}:epoch                integer: how many trainers have led. The leader has the highest epoch.
"""

from __future__ import annotations

from typing import Final

FEEDBACK_STREAM: Final = "rewardloop:{feedback}:events"
EVENT_FIELD: Final = "event"
ID_FIELD: Final = "id"
TRACE_FIELD: Final = "trace"
# A prefix, which an event_id follows.
FEEDBACK_SEEN: Final = "rewardloop:{feedback}:seen:"
# Prefixes, which are followed by a window and a hash of the annotator, and by a hash of generation and annotator.
FEEDBACK_COUNT: Final = "rewardloop:{feedback}:count:"
FEEDBACK_JUDGED: Final = "rewardloop:{feedback}:judged:"
FEEDBACK_GROUP: Final = "trainer"
SUSPECT: Final = "rewardloop:{feedback}:suspect"
FEEDBACK_BARRIER: Final = "rewardloop:{feedback}:barrier"
DEAD_LETTERS: Final = "rewardloop:{feedback}:dead"
DEAD_EVENT_FIELD: Final = "event"
DEAD_REASON_FIELD: Final = "reason"
DEAD_SOURCE_FIELD: Final = "source_id"

# A prefix, which a generation_id follows.
GENERATION: Final = "rewardloop:{generation}:"
# It is not under that prefix, because callers choose what follows the prefix.
GENERATION_KEYS: Final = "rewardloop:{secrets}:generation"

ACTIVE: Final = "rewardloop:{models}:active"
POINTER_BARRIER: Final = "rewardloop:{models}:barrier"
PROMOTED_BY: Final = "rewardloop:{models}:promoted_by"
# A prefix, which a version's digest follows.
FIRST_SERVED: Final = "rewardloop:{models}:first_served:"

TRAINER_LOCK: Final = "rewardloop:{trainer}:leader"
TRAINER_EPOCH: Final = "rewardloop:{trainer}:epoch"
