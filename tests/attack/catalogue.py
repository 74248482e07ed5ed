"""Every attack with what becomes of it, and the tests that carry it out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Attack:
    """One attack.

    Attributes:
        by: Who carries it out, or what does.
        name: What is done.
        outcome: What becomes of it.
        tests: Node ids of pytest under ``tests``: folders, files, or single tests of them.
    """

    by: str
    name: str
    outcome: str
    tests: tuple[str, ...]


_OPEN = "integration/test_open_calls.py::"
_FIELDS = "attack/test_repeated_fields.py::"
_CALLERS = "attack/test_feedback_callers.py::"
_HTTP = "integration/test_http_connections.py::"
_MODELS = "integration/test_models.py::"
_MACHINE = "integration/test_hostile_machine.py::"
_STUCK = "e2e/test_stuck_replicas.py::"

_ANYBODY, _CALLER, _REDIS = "anybody", "a caller with a token", "a Redis that loses"
_STORE, _MODEL, _LOCAL, _NETWORK = "the model store", "a model", "this machine", "the network"

ATTACKS = (
    Attack(
        _ANYBODY,
        "opens thousands of health watches on many connections",
        "watches are bounded for a connection, an address and in all; callers with a token and probes are answered",
        (
            f"{_OPEN}test_watches_of_one_connection_are_bounded_and_end_with_their_callers",
            f"{_OPEN}test_one_address_cannot_take_the_share_of_the_whole_with_many_connections",
            f"{_OPEN}test_calls_whose_message_never_comes_count_and_end",
        ),
    ),
    Attack(
        _ANYBODY,
        "sends messages that swell when they are decompressed",
        "UNIMPLEMENTED: compression is off unless it is asked for; open calls take a few kB",
        (
            f"{_OPEN}test_compressed_messages_are_taken_only_if_that_is_asked_for",
            f"{_OPEN}test_a_large_message_is_refused_and_small_ones_are_answered",
        ),
    ),
    Attack(
        _ANYBODY,
        "opens half requests on the metrics page",
        "few threads, each for a bounded time",
        ("integration/test_metrics_page.py",),
    ),
    Attack(
        _ANYBODY,
        "opens connections to the HTTP door and sends nothing, half a head, or a body without end, or reads no answer",
        "each is hung up in time; a new connection takes the place of one that waits, and others are answered",
        (
            f"{_HTTP}test_more_silent_connections_than_the_door_holds_keep_nobody_out",
            f"{_HTTP}test_bodies_that_never_end_keep_nobody_out",
            f"{_HTTP}test_what_does_not_come_in_time_is_hung_up",
            f"{_HTTP}test_a_client_that_reads_no_answer_is_hung_up_and_takes_no_place",
            "unit/gateway/test_door_turns.py",
        ),
    ),
    Attack(
        _ANYBODY,
        "begins thousands of sign-ins at the console, or opens thousands of sessions",
        "what was begun is kept by the browser; who has signed in stays so",
        (
            "unit/console/test_console_oidc.py::test_any_number_of_sign_ins_that_others_begin_ends_nobodys",
            "unit/console/test_console_sessions.py",
        ),
    ),
    Attack(
        _CALLER,
        "sends one group of the heaviest kind, or texts of megabytes",
        "it takes its caller's share of the queue and of tokenizing, and others go on",
        ("property/test_shares.py", "unit/server/test_tokenize.py"),
    ),
    Attack(
        _CALLER,
        "sends many of the largest batches to score, which wait for the engine together",
        "each is in memory once while it waits, and the memory that it came through is given back",
        ("attack/test_large_batches.py", "unit/server/test_large_batch.py", "unit/server/test_freed_memory.py"),
    ),
    Attack(
        _CALLER,
        "sends millions of entries of a repeated field",
        "INVALID_ARGUMENT by their number, before anything is walked through",
        (
            f"{_FIELDS}test_an_event_is_refused_by_the_number_of_its_entries",
            f"{_FIELDS}test_a_batch_is_priced_without_a_walk_through_millions_of_groups",
            f"{_FIELDS}test_a_ranking_of_a_generation_is_checked_against_its_responses",
        ),
    ),
    Attack(
        _CALLER,
        "fills the stream with huge signals, or with one that kills whoever reads it",
        "a signal has at most 1 MiB; they are read by bytes, and what kills its reader becomes a dead letter",
        (
            f"{_FIELDS}test_an_event_has_a_bound_in_bytes_as_sent_and_as_filled_in",
            "attack/test_stream_floods.py",
        ),
    ),
    Attack(
        _CALLER,
        "sends junk under another's event_id",
        "ids are apart for each caller; another content under one's own id is ALREADY_EXISTS",
        (
            f"{_CALLERS}test_junk_that_is_sent_first_under_anothers_event_id_displaces_nothing",
            f"{_CALLERS}test_the_ledger_has_a_callers_event_id_once_whatever_the_stream_has",
            f"{_CALLERS}test_no_caller_speaks_in_anothers_name",
        ),
    ),
    Attack(
        _CALLER,
        "invents annotators, prompts or responses",
        "bounds for a caller; feedback may have to name a generation of its caller",
        (
            f"{_CALLERS}test_invented_annotators_do_not_pass_the_bound_of_a_caller",
            f"{_CALLERS}test_no_caller_uses_up_the_bound_of_anothers_annotator",
            f"{_CALLERS}test_feedback_may_have_to_name_a_generation_of_its_caller",
        ),
    ),
    Attack(
        _CALLER,
        "promotes with a leader's epoch of 2^63, asks for a version of 300 digits, rolls back twice at once",
        "refused; learning goes on, and one version is rolled back",
        (
            f"{_MODELS}test_an_epoch_that_nobody_led_with_is_refused_and_ends_no_learning",
            f"{_MODELS}test_a_version_that_no_store_has_is_not_found",
            f"{_MODELS}test_two_rollbacks_at_once_go_back_one_version",
        ),
    ),
    Attack(
        _CALLER,
        "sends a text on which the model fails, gives no number, or computes for ever",
        "that request alone fails, and no other replica is asked to run it",
        (
            "integration/test_isolation.py",
            "integration/test_stuck_runs.py",
            f"{_STUCK}test_a_replica_whose_run_can_be_stopped_serves_on",
            f"{_STUCK}test_a_replica_that_is_stuck_for_good_ends_and_the_other_answers_everything",
        ),
    ),
    Attack(
        _CALLER,
        "calls what its roles do not allow, more often than its quota allows, or with a token that somebody altered",
        "refused before its message is read; a publishable token gives feedback on one generation, and nothing else",
        (
            "integration/test_door_roles.py",
            "integration/test_door_quotas.py",
            "integration/test_publishable_tokens.py",
        ),
    ),
    Attack(
        _CALLER,
        "sends 5,000 odd requests to the HTTP door, or a page of another origin calls it",
        "no 500; foreign origins and host names, bodies that are too large or no JSON are refused",
        ("e2e/test_http_fuzz.py", "unit/gateway"),
    ),
    Attack(
        _CALLER,
        "forges control tokens in a text",
        "they are read as characters",
        ("unit/protos/test_affix_layout.py", "unit/protos/test_template_layout.py"),
    ),
    Attack(
        _REDIS,
        "a replica that lags becomes the master",
        "what it lacks was not acknowledged, or is put back",
        ("integration/test_failover.py",),
    ),
    Attack(
        _REDIS,
        "its data are gone, its clock is behind",
        "new signals are new to the ledger and to rounds; the pointer comes from the store",
        ("attack/test_lost_redis.py", "integration/test_pointer.py"),
    ),
    Attack(
        _REDIS,
        "failovers, losses, races and restarts after a person's rollback",
        "20 of 20 rollbacks stand",
        (
            "faults/test_rollbacks_stand.py",
            f"{_MODELS}test_a_rollback_holds_the_promotions_of_trainers_until_a_person_promotes",
        ),
    ),
    Attack(
        _REDIS,
        "it keeps nothing on a disk, and nobody said so",
        "log, metric and `status` say how durable it is; a server that starts without it serves the store's pointer",
        ("integration/test_durability.py",),
    ),
    Attack(
        _REDIS,
        "everything is destroyed, or a backup was altered",
        "a restore has each signal once, serves and trains on; an altered backup is refused before anything is written",
        ("integration/test_backup.py", "e2e/test_backup_restore.py", "integration/test_earlier_release.py"),
    ),
    Attack(
        _STORE,
        "versions, signals, reports and remembered ids pile up",
        "each has a bound or a command that deletes what nothing needs",
        ("integration/test_prune.py", "integration/test_remembered_ids.py"),
    ),
    Attack(
        _STORE,
        "two publishers claim one version; a manifest is odd",
        "each gets a number of its own; other versions are listed",
        ("unit/protos/test_store_claims.py", f"{_MODELS}test_one_odd_manifest_hides_no_other_version"),
    ),
    Attack(
        _MODEL,
        "a graph loops without end, swells, or takes all memory when it is loaded",
        "a child process tries it first, and it is refused with the reason; rollbacks and SIGTERM work meanwhile",
        (
            "integration/test_load_probe.py",
            f"{_STUCK}test_a_version_that_hangs_when_it_is_tried_is_refused_while_the_old_one_serves",
            f"{_STUCK}test_a_stuck_replica_takes_a_rollback_and_ends_with_sigterm",
        ),
    ),
    Attack(
        _MODEL,
        "a tokenizer has tokens beyond the embedding, or a text more positions than the model",
        "refused at export and when it is loaded",
        ("integration/test_export_vocabulary.py", "integration/test_bounds.py"),
    ),
    Attack(
        _MODEL,
        "a policy does not end, or its worker stands still",
        "UNAVAILABLE within seconds, and it is back when it goes on",
        ("integration/test_stuck_sampling.py",),
    ),
    Attack(
        _LOCAL,
        "another user calls what `rewardloop up` runs, or its Redis, or takes the connections of its HTTP door",
        "PERMISSION_DENIED; Redis listens on a socket in a folder of its user and asks for a password",
        (
            "integration/test_own_user.py",
            "integration/test_redis_server.py",
            f"{_HTTP}test_another_users_connections_take_no_room_of_the_own_ones",
        ),
    ),
    Attack(
        _LOCAL,
        "the disk or Redis is full",
        "signals are refused and none is lost; what is full is named, and room ends it",
        (
            "integration/test_consume_faults.py::test_full_disk_stops_acknowledgements_and_room_ends_it",
            "integration/test_loop_leader.py::test_a_redis_at_its_memory_limit_gets_a_leader_who_makes_room",
            "integration/test_intake.py",
        ),
    ),
    Attack(
        _LOCAL,
        "a second server takes a socket, a port is busy, the terminal closes, no temporary folder",
        "one line that says so; nothing is taken over, and nothing is left running",
        ("integration/test_hostile_machine.py", "e2e/test_up_ends.py"),
    ),
    Attack(
        _LOCAL,
        "a proxy is set for all addresses",
        "calls to loopback do not ask it",
        ("integration/test_up_parts.py::test_loopback_is_exempt_from_proxies_beside_what_the_user_exempts",),
    ),
    Attack(
        _LOCAL,
        "a deployment listens in plaintext, or an image takes a package from elsewhere",
        "manifests ask for TLS and tokens, and packages come from locks with hashes and one index",
        (
            "integration/test_kubernetes.py::test_what_is_applied_speaks_tls_and_asks_for_tokens",
            "unit/deploy/test_locks.py",
        ),
    ),
    Attack(
        _NETWORK,
        "replies with another number of scores, NaN, an empty or unknown item",
        "the client raises an error that names it",
        ("unit/client/test_unusable_replies.py",),
    ),
    Attack(
        _NETWORK,
        "options of gRPC that it does not know or that have no effect",
        "each name is known to the installed gRPC; a peer that stands still is let go",
        (
            f"{_OPEN}test_every_option_of_a_listening_server_is_known_to_the_installed_grpc",
            f"{_MACHINE}test_client_that_stands_still_is_let_go_after_the_time_of_a_ping",
        ),
    ),
)
