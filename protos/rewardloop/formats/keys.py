"""Every Redis key of rewardloop. Keys that one script or transaction uses share a hash tag, as Redis Cluster demands.

rewardloop:{feedback}:events              stream: one entry for each signal. Fields: EVENT_FIELD, a serialized
                                          rewardloop.v1.FeedbackEvent, ID_FIELD, its event_id, and TRACE_FIELD, the
                                          W3C traceparent of its request, if there was one. The server appends, the
                                          consumer group `trainer` reads, and only archived entries are trimmed. An
                                          entry that takes an import back has RETRACTION_FIELD, the import's id, and
                                          CALLER_FIELD, whose import it is, instead, and RETRACTION_AGE_FIELD, how many
                                          seconds ago its first signal was given, if that is known.
rewardloop:{feedback}:ids                 hash: how far the remembered event_ids reach. Fields: `window`, the number
                                          of the window that new ids go to, `since`, when the first one began, and
                                          `began0`, `count0` (that window), `began1`, `count1` (the one before it),
                                          `began2`, `count2`: when it began, in Unix seconds, and its ids.
rewardloop:{feedback}:ids:<window>:<xxxx> hash: one of a window's 65,536 buckets of ids. A digest of caller and event_id
                                          has 12 bytes: the first 2, in hex, name the bucket, and the other 10 are the
                                          field. The value is 8 bytes of a digest of what was said. Expires.
rewardloop:{feedback}:seen:<event_id>     string: how earlier versions remembered an event_id; read until the last of
                                          them has expired.
rewardloop:{feedback}:count:<window>:<hash>  integer: signals of one annotator or caller in a minute or a day. Expires.
rewardloop:{feedback}:judged:<hash>       set: hashes of one annotator's signals about one generation. Expires.
rewardloop:{feedback}:dead                stream: entries that cannot be read. Fields: `event`, the bytes as they
                                          were, `reason`, and `source_id`, the entry's id in the first stream. The
                                          trainer drops the oldest beyond its bounds.
rewardloop:{feedback}:suspect             string: id of an entry that the trainer reads alone, because it was read
                                          several times and never archived. A trainer that finds it at its start
                                          knows that this entry ended the process.
rewardloop:{feedback}:erasures            hash: erasure_id to the JSON of `formats.erasing.erasures.Erasure`.
rewardloop:{feedback}:erasures-changed    integer: grows with every change of erasures and reports.
rewardloop:{feedback}:erasure-holders     hash: name of a process that keeps signals to the Unix seconds at which it
                                          was last seen.
rewardloop:{feedback}:erasure-looks       hash: name of a look at what would be erased to the JSON of the
                                          `erasing.Erasure` that is not asked for yet. Expires.
rewardloop:{feedback}:erasure-look:<name> string: the JSON of `erasing.Taught`, what the trainer found. Expires.
rewardloop:{feedback}:erasure:<id>        hash: name of a holder to the JSON of what it has done of an erasure.
rewardloop:{feedback}:erased              set: digests, 16 bytes each, of the event_ids that were erased.
rewardloop:{feedback}:erased-again        string: set while Redis's files may hold an erased signal that came again and
                                          was dropped.
rewardloop:{secrets}:erasure              hash: name of a key to the key in hex, that makes digests of erased ids.
rewardloop:{generation}:<generation_id>   string: a serialized rewardloop.v1.Generation. Expires.
rewardloop:{generation}-caller:<generation_id>  string: the authenticated caller that it was generated for. Expires.
rewardloop:{secrets}:generation           list: keys in hex that sign generation ids, newest first; two are read.
rewardloop:{feedback}:barrier             string: empty. Set before a WAIT for replicas.
rewardloop:{labelling}:projects           set: the names of all labelling projects.
rewardloop:{labelling}:barrier            string: empty. Set before a WAIT for replicas.
rewardloop:{labelling:<project>}:         prefix of the keys of a labelling project, all of one hash tag:
  tasks, generations   hash: task_id to a serialized NewTask, and to the Generation of its candidates if it names one.
  task:<task_id>       hash: `wanted`, how many labellers are to answer it; `taken`, how many places leases and answers
                       take; `answers`; `skips`; `imports`, to how many it belongs; `closed`, why nobody gets it any
                       more: "skips" or "retracted"; `size`, its candidates; `information`; `scored`, if a model has.
  had:<task_id>        hash: a labeller's hash to the lease by which the labeller had the task, not as a repeat.
  of:<task_id>         set: all leases of the task. said:<task_id>: hash, lease to what it says about each pair.
  import:<import_id>   set: the tasks of an import.
  open                 sorted set: tasks that somebody may get, by information. unscored: set of those without it.
  leases               sorted set: leases that are held, by their end. pending: those begun to be answered or undone.
  lease:<lease_id>     hash: `task`, `who`, `order`, `probability`, `uniform`, `information`, `repeat`, `state` (held,
                       ended, pending, answered, undoing, retracted), and with an answer `given`, a serialized
                       GivenAnswer, `digest`, `kind`, `marks`, `ms`, `reason`, `place`, `attempt`.
  answers              stream: one entry for each answer and skip. Field: `lease`.
  people               set: the hashes of labellers. who:<hash>: hash, the counts of one.
  held:<hash>          list: leases of a labeller without an answer, newest first. given:<hash>: those with one.
  mine:<hash>          set: open tasks that the labeller may not get. again:<hash>: tasks that were repeated.
  meta, kinds, skips   hash: counters of the project, of answers by kind, of skips by reason. `meta` also has
                       `guidelines`, their present version, and what said the information of its tasks.
  guidelines           hash: version to text. barrier: string, empty; set before a WAIT for replicas.
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
rewardloop:{operations}:trainer           string: a serialized rewardloop.v1.TrainerStatus. Expires.
rewardloop:{operations}:rounds            hash: <model>/<trainer_id>/<number> to a serialized rewardloop.v1.Round
                                          without curves and examples, which those of earlier releases have. The
                                          trainer drops the oldest ones.
rewardloop:{operations}:round-details     hash: the same fields to a serialized rewardloop.v1.Round that has nothing
                                          but curves, and examples of what people wrote.
rewardloop:{operations}:crowd             string: a serialized rewardloop.v1.Crowd, which names people.
rewardloop:{operations}:mutes             hash: a person (`formats.signals.person_of`) to a serialized
                                          rewardloop.v1.Mute. The server writes, and every round of a trainer reads.
rewardloop:{operations}:barrier           string: empty. Set before a WAIT for replicas.
"""

from __future__ import annotations

import functools
import hashlib
from typing import Final

FEEDBACK_STREAM: Final = "rewardloop:{feedback}:events"
EVENT_FIELD: Final = "event"
ID_FIELD: Final = "id"
TRACE_FIELD: Final = "trace"
RETRACTION_FIELD: Final = "retraction"
RETRACTION_AGE_FIELD: Final = "age_s"
CALLER_FIELD: Final = "caller"
FEEDBACK_IDS: Final = "rewardloop:{feedback}:ids"
# A prefix, which an event_id follows.
FEEDBACK_SEEN: Final = "rewardloop:{feedback}:seen:"
# Prefixes, which are followed by a window and a hash of annotator or caller, and by a hash of generation and annotator.
FEEDBACK_COUNT: Final = "rewardloop:{feedback}:count:"
FEEDBACK_JUDGED: Final = "rewardloop:{feedback}:judged:"
FEEDBACK_GROUP: Final = "trainer"
SUSPECT: Final = "rewardloop:{feedback}:suspect"
FEEDBACK_BARRIER: Final = "rewardloop:{feedback}:barrier"
DEAD_LETTERS: Final = "rewardloop:{feedback}:dead"
DEAD_EVENT_FIELD: Final = "event"
DEAD_REASON_FIELD: Final = "reason"
DEAD_SOURCE_FIELD: Final = "source_id"

ERASURES: Final = "rewardloop:{feedback}:erasures"
ERASURES_CHANGED: Final = "rewardloop:{feedback}:erasures-changed"
ERASURE_HOLDERS: Final = "rewardloop:{feedback}:erasure-holders"
ERASURE_LOOKS: Final = "rewardloop:{feedback}:erasure-looks"
# A prefix, which the name of a look follows.
ERASURE_LOOK: Final = "rewardloop:{feedback}:erasure-look:"
# A prefix, which an erasure_id follows.
ERASURE_REPORTS: Final = "rewardloop:{feedback}:erasure:"
ERASED_EVENTS: Final = "rewardloop:{feedback}:erased"
ERASED_AGAIN: Final = "rewardloop:{feedback}:erased-again"
ERASURE_KEYS: Final = "rewardloop:{secrets}:erasure"
LABELLING_PROJECTS: Final = "rewardloop:{labelling}:projects"
LABELLING_PROJECTS_BARRIER: Final = "rewardloop:{labelling}:barrier"

# A prefix, which a generation_id follows.
GENERATION: Final = "rewardloop:{generation}:"
GENERATION_CALLER: Final = "rewardloop:{generation}-caller:"
# It is not under that prefix, because callers choose what follows the prefix.
GENERATION_KEYS: Final = "rewardloop:{secrets}:generation"

ACTIVE: Final = "rewardloop:{models}:active"
POINTER_BARRIER: Final = "rewardloop:{models}:barrier"
PROMOTED_BY: Final = "rewardloop:{models}:promoted_by"
# A prefix, which a version's digest follows.
FIRST_SERVED: Final = "rewardloop:{models}:first_served:"

TRAINER_LOCK: Final = "rewardloop:{trainer}:leader"
TRAINER_EPOCH: Final = "rewardloop:{trainer}:epoch"

TRAINER_STATUS: Final = "rewardloop:{operations}:trainer"
ROUNDS: Final = "rewardloop:{operations}:rounds"
ROUND_DETAILS: Final = "rewardloop:{operations}:round-details"
CROWD: Final = "rewardloop:{operations}:crowd"
MUTES: Final = "rewardloop:{operations}:mutes"
OPERATIONS_BARRIER: Final = "rewardloop:{operations}:barrier"

# Bytes of the digest of an event_id, and those of them that name its bucket.
_ID_BYTES, _BUCKET_BYTES = 12, 2


def labelling_prefix(project: str) -> str:
    """Return the prefix of the keys of a labelling project, with their hash tag."""
    return f"rewardloop:{{labelling:{project}}}:"


@functools.lru_cache(1024)
def caller_key(caller: str) -> bytes:
    """Return the key of a caller's digests, so that callers have event_ids of their own; empty without a caller."""
    return hashlib.blake2b(caller.encode(), digest_size=32).digest() if caller else b""


def id_digest(event_id: str, key: bytes) -> bytes:
    """Return the 12 bytes of a digest of an event_id and the caller whose key this is."""
    return hashlib.blake2b(event_id.encode(), digest_size=_ID_BYTES, key=key).digest()


def judged_key(generation_id: str, annotator_id: str, source: int, caller: str) -> str:
    """Return the key of the set of what an annotator of a caller said about a generation."""
    # By source too, because a judge model and a person may both name no annotator.
    return FEEDBACK_JUDGED + hash_of(generation_id, annotator_id, str(source), caller=caller)


def hash_of(*parts: str, caller: str = "") -> str:
    """Hash the parts under the caller's own key. Without a caller it is the hash of earlier versions."""
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=12, key=caller_key(caller)).hexdigest()


def places_of(event_id: str, caller: str, window: int, windows: int) -> list[tuple[str, bytes]]:
    """Return the hashes, and the field in each, that may remember an event_id in the latest windows."""
    digest = id_digest(event_id, caller_key(caller))
    bucket, field = digest[:_BUCKET_BYTES].hex(), digest[_BUCKET_BYTES:]
    return [(f"{FEEDBACK_IDS}:{w}:{bucket}", field) for w in range(max(0, window - windows + 1), window + 1)]


def round_field(model: str, trainer_id: str, number: int) -> str:
    """Return the field of a round in `ROUNDS` and `ROUND_DETAILS`."""
    return f"{model}/{trainer_id}/{number}"
