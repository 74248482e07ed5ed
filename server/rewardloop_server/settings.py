"""Settings of the serving processes."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from rewardloop.formats.mixing.names import further_models
from rewardloop.formats.redis_url import RedisUrl
from rewardloop_server.device.kinds import TORCH_DEVICES, AdapterUse, EngineKind, WantedDevice
from rewardloop_server.doors.settings import DoorSettings
from rewardloop_server.feedback.id_windows import LEAST_OF_MOST_IDS, MOST_IDS, MOST_OF_MOST_IDS

# The command's name in messages of `rewardloop serve`.
PROG = "rewardloop serve"


class ServingSettings(DoorSettings):
    """The settings that `rewardloop serve` and `rewardloop policy-worker` share."""

    setting_groups: ClassVar[tuple[tuple[str, str], ...]] = (
        ("store", "Stores and addresses"),
        ("max_text_bytes", "Bounds of texts and messages"),
        ("generation_ttl_s", "Generations"),
        ("pointer_poll_s", "The process"),
    )

    store: str = Field("rewardloop-data/models", description="model store: a path or an fsspec URL such as s3://...")
    trusted_keys: str = Field(
        "",
        description="file of public ed25519 keys (PEM): a version that none of them signed is refused; empty: no check",
    )
    redis_url: RedisUrl = Field(
        "redis://127.0.0.1:6379/0", description="Redis with the feedback stream, generations and pointers"
    )
    redis_replicas: int = Field(
        -1,
        ge=-1,
        le=100,
        description="how many replicas of Redis must have a signal or a moved pointer before it is acknowledged; -1: 1"
        " behind sentinels and in a cluster with replicas, else 0",
    )
    redis_replicas_ms: int = Field(
        1000,
        ge=1,
        le=1500,
        description="how long they may take; then the call is refused, and may be repeated",
    )
    listen: str = Field(
        "127.0.0.1:50051",
        description="gRPC address (host:port or unix:PATH); on loopback unless others must reach it",
    )
    metrics_port: int = Field(9464, ge=0, le=65535, description="Prometheus page; 0: none")
    metrics_host: str = Field("127.0.0.1", description="address of that page; on loopback unless others must reach it")

    max_text_bytes: int = Field(262_144, ge=1, description="most UTF-8 bytes in one text")
    max_message_bytes: int = Field(8 * 2**20, ge=1024, description="most bytes in one gRPC message")
    generation_ttl_s: int = Field(7 * 86_400, ge=60, description="how long a generation_id can be named")
    generation_key_file: str = Field(
        "", description="keys that sign generation ids, in hex, a line each, newest first; empty: kept in Redis"
    )
    pointer_poll_s: float = Field(0.25, gt=0, description="how often the active pointer is read")
    drain_grace_s: float = Field(20.0, ge=0, description="how long requests in flight may finish after SIGTERM")
    run_limit_s: float = Field(
        8.0,
        gt=0,
        description="a run of a model may take so long, however short it should be (with TensorRT at least 600 s);"
        " then it is told to stop",
    )
    run_limit_factor: float = Field(
        20.0, ge=1, description="a run may also take its estimated time, multiplied by this"
    )
    run_grace_s: float = Field(
        5.0, ge=0, description="if a run that was told to stop goes on for so long, the process ends with status 1"
    )
    tracing_endpoint: str = Field(
        "", description="OTLP/HTTP collector for traces, http://host:4318; empty: that of OTEL_* variables, or none"
    )
    log_format: Literal["console", "json"] = "console"
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class ServeSettings(ServingSettings):
    """Scores, takes feedback, and shows and moves model versions, over gRPC."""

    basic_settings = (
        *("store", "redis_url", "listen", "metrics_port", "policy_address", "device", "intra_op_threads"),
        *("tls_cert", "tls_key", "callers", "log_format", "log_level"),
    )
    setting_groups = (
        ("front_processes", "Several processes"),
        ("policy_address", "The policy worker"),
        ("reward_models", "Several reward models"),
        ("device", "Running the reward model"),
        ("load_probe", "Loading versions"),
        ("pooling_urls", "A reward model on a vLLM or SGLang server"),
        ("token_budget", "Batches, queues and the cache"),
        ("max_responses", "Bounds of one request"),
        ("spool", "Feedback"),
        ("label_lease_s", "Labelling"),
    )

    front_processes: int = Field(
        0,
        ge=0,
        le=64,
        description="processes that share the port, check and tokenize requests, and hand them to one more process that"
        " runs the models; for small models on a GPU, with a core for each process; 0: one process does it all",
    )

    policy_address: str = Field("", description="the policy worker (host:port or unix:PATH); empty: no policy")
    policy_ca: Path | None = Field(
        None, description="PEM authorities of the worker's certificate; the connection is TLS then"
    )
    policy_client_cert: Path | None = Field(None, description="PEM certificate to show to the worker")
    policy_client_key: Path | None = Field(None, description="PEM private key of that certificate")
    policy_server_name: str = Field("", description="name in the worker's certificate, if it differs from its address")
    policy_token_file: Path | None = Field(None, description="file with the token to show to the worker")

    reward_models: list[str] = Field(
        [],
        description="reward models beside 'reward', such as helpful,harmless: each has versions and a pointer of its"
        " own, and takes as much memory",
    )
    mixtures: Path | None = Field(
        None, description="TOML file of mixtures: weighted sums of reward models and rules, with floors"
    )

    device: WantedDevice = Field("auto", description="where the reward model runs")
    engine: EngineKind = Field(
        "onnx",
        description="what runs it: onnx, its graph by ONNX Runtime; torch, the torch model beside the graph, which each"
        " version proves at load to give the graph's logits (needs torch and transformers)",
    )
    device_id: int | None = Field(
        None,
        ge=0,
        description="which GPU the process uses, of those that CUDA shows to it (CUDA_VISIBLE_DEVICES), counted from 0;"
        " none: the first, or those of --device-ids",
    )
    device_ids: list[Annotated[int, Field(ge=0)]] = Field(
        [],
        description="the GPUs that the process uses, such as 0,1,2,3: each holds every version, and a run goes to the"
        " one that is least busy; none: the one of --device-id",
    )
    device_memory_gb: float = Field(
        0.0,
        ge=0.0,
        description="most gigabytes of the memory of each GPU for the runs of one graph, weights included; 0: no bound",
    )
    tf32: bool = Field(
        False,
        description="products of float32 matrices on a GPU may be rounded to TF32 (10 bits): faster, and no longer what"
        " the version was gated at",
    )
    adapters: AdapterUse = Field(
        "auto",
        description="how the adapter of a version reaches its graph: bound, its values lie on the device while it is"
        " loaded; active, ONNX Runtime is given them with each run, and copies them to a GPU; auto: bound on a GPU,"
        " active on a CPU",
    )
    intra_op_threads: int = Field(0, ge=0, description="threads of a run on a CPU; 0: one a core")
    streams: int = Field(
        0,
        ge=0,
        description="most runs at once on a CPU or on each GPU, each with its share of the threads: more throughput,"
        " and on a CPU the weights of graphs are twice in memory; 0: two on a CPU with two threads or more, else one",
    )
    tokenize_threads: int = Field(2, ge=1, description="threads that tokenize")
    resident_versions: int = Field(
        4, ge=1, description="most reward versions in memory; versions that share the active one's graph stay warm"
    )
    engine_nice: int = Field(
        10,
        ge=0,
        le=19,
        description="by how much threads that compute on a CPU raise their niceness, so that the thread that answers"
        " goes first; less if other busy processes share the cores and no container divides them",
    )
    spin: bool = Field(True, description="ONNX Runtime threads spin between runs: lower latency, busier cores")

    load_probe: Literal["always", "unsigned", "never"] = Field(
        "always",
        description="which reward versions are tried in a child process first; unsigned: those that no key of"
        " --trusted-keys signed",
    )
    load_limit_s: float = Field(
        30.0,
        gt=0,
        description="how long a step of a load may take (opening the graph, a run of a few tokens), beside a second for"
        " each 50 MB",
    )
    load_memory_mib: int = Field(
        0,
        ge=0,
        description="most memory that a version may take while it is tried, in MiB; 0: 1 GiB, four times its files, and"
        " what attention over its longest sequence takes. It never takes more than 0.9 of what the machine has left",
    )
    allow_loops: bool = Field(False, description="load graphs with loops whose number of trips is not a constant, too")

    pooling_urls: list[str] = Field(
        [],
        description="base URLs of servers such as http://127.0.0.1:8000 that run the versions which are exported with"
        " --served-as; a version is run by those of them that serve its name and prove it",
    )
    pooling_api: Literal["vllm", "sglang"] = Field("vllm", description="which kind of server they are")
    pooling_api_key_file: Path | None = Field(None, description="file with the key to show to them; none: no key")

    token_budget: int = Field(8192, ge=1, description="most tokens in one run of the engine")
    production_run_ms: float = Field(
        50.0,
        gt=0,
        description="most estimated time of one run for production while all streams run; a single row may take longer",
    )
    trainer_run_ms: float = Field(
        20.0,
        gt=0,
        description="the same for the trainer and shadow lanes, whose runs a production request may wait for",
    )
    queue_tokens_production: int = Field(262_144, ge=1, description="bound of the production lane's queue, in tokens")
    queue_tokens_trainer: int = Field(524_288, ge=1, description="bound of the trainer lane's queue, in tokens")
    queue_tokens_shadow: int = Field(32_768, ge=1, description="bound of the shadow lane's queue, in tokens")
    queue_ms_production: float = Field(
        5000.0, gt=0, description="bound of the production lane's queue, in estimated time of work"
    )
    queue_ms_trainer: float = Field(
        60_000.0, gt=0, description="bound of the trainer lane's queue, in estimated time of work"
    )
    trainer_max_wait_ms: float = Field(500.0, ge=0, description="after this wait the trainer lane goes first once")
    bulk_window_tokens: int = Field(
        32_768, ge=1, description="about how many tokens of one ScoreBatch or ScoreStream are worked on at once"
    )
    cache_mib: int = Field(64, ge=0, description="scores kept for each loaded version, in MiB; 0: no cache")
    prefix_cache_mib: int = Field(
        0,
        ge=0,
        description="with the engine torch: keys and values of prompts kept for all versions together, in MiB, so that"
        " the next responses to a prompt compute themselves alone; 0: none",
    )
    cache_production: bool = Field(False, description="answer production from the cache of scores, too")
    cache_trainer: bool = Field(True, description="answer the trainer lane from the cache of scores")

    max_responses: int = Field(256, ge=1, description="most responses in one group")
    max_groups: int = Field(1024, ge=1, description="most groups in one ScoreBatch")
    max_event_bytes: int = Field(2**20, ge=1024, description="most bytes of one signal with its prompt and responses")
    max_events: int = Field(1000, ge=1, description="most events in one RecordBatch")
    max_in_flight_per_stream: int = Field(256, ge=1, description="requests of one ScoreStream worked on at once")

    spool: str = Field("", description="directory that keeps signals while Redis is away; empty: they are refused then")
    spool_mib: int = Field(256, ge=1, description="most that the spool takes of its disk, in MiB")
    seen_ttl_s: int = Field(
        30 * 86_400, ge=60, description="how long an event_id is remembered, at least, so that it is recorded once"
    )
    seen_ids: int = Field(
        MOST_IDS,
        ge=LEAST_OF_MOST_IDS,
        le=MOST_OF_MOST_IDS,
        description="most event_ids that are remembered, at about 25 bytes of Redis's memory each; beyond it the oldest"
        " are forgotten earlier",
    )
    require_generation: bool = Field(
        False,
        description="take only feedback that names a generation of this deployment, and with --callers one that was"
        " made for the same caller",
    )
    caller_signals_per_minute: int = Field(
        0, ge=0, description="most signals of one caller, whatever annotators it names; 0: no bound"
    )
    caller_signals_per_day: int = Field(0, ge=0, description="the same, in a day of UTC")
    annotator_signals_per_minute: int = Field(
        0, ge=0, description="most signals of one annotator of a caller; 0: no bound"
    )
    annotator_signals_per_day: int = Field(0, ge=0, description="the same, in a day of UTC")
    annotator_signals_per_generation: int = Field(
        64, ge=0, description="most signals of one annotator about one generation, none of them twice; 0: not checked"
    )

    label_lease_s: float = Field(
        600.0, ge=1, le=7 * 86_400, description="how long a labeller keeps a task without asking for it again"
    )
    label_uniform_share: float = Field(
        0.2,
        ge=0,
        le=1,
        description="share of the tasks that are drawn uniformly; the others are those from which the reward model is"
        " expected to learn most",
    )
    label_repeat_share: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="share of the tasks that a labeller is given again, to see how far labellers agree with themselves",
    )
    label_skips: int = Field(3, ge=1, description="after so many skips nobody is given a task any more")

    @property
    def gpus(self) -> tuple[int, ...]:
        """The ids of the GPUs that the process uses if it uses any, each once."""
        return tuple(self.device_ids) or (self.device_id or 0,)

    @model_validator(mode="after")
    def _names_gpus(self) -> Self:
        """Raises ValueError if a GPU is named and none is to be used, or if it is not clear which ones are named."""
        if self.device == "cpu" and self.device_id:
            raise ValueError(f"device_id {self.device_id} names a GPU, and device is cpu")
        if self.device == "cpu" and self.device_ids:
            raise ValueError(f"device_ids {self.device_ids} name GPUs, and device is cpu")
        if self.device_ids and self.device_id is not None:
            raise ValueError("device_id and device_ids are both set: name all GPUs in device_ids")
        if twice := [number for number, count in Counter(self.device_ids).items() if count > 1]:
            raise ValueError(f"device_ids name GPUs twice: {twice}")
        return self

    @model_validator(mode="after")
    def _engine_fits(self) -> Self:
        """Raises ValueError for a device or a cache that the engine cannot use."""
        if self.engine == "torch" and self.device not in ("auto", *TORCH_DEVICES):
            raise ValueError(f"device {self.device} runs graphs, and engine is torch")
        if self.prefix_cache_mib and self.engine != "torch":
            raise ValueError("prefix_cache_mib needs engine torch: a graph gives no keys and values")
        return self

    @model_validator(mode="after")
    def _fronts_can_share(self) -> Self:
        """Raises ValueError if several processes cannot serve with these settings."""
        if not self.front_processes:
            return self
        if sys.platform != "linux":
            raise ValueError(
                "front_processes needs Linux: elsewhere the system does not deal a port's connections out to processes"
                " (SO_REUSEPORT)"
            )
        if self.listen.startswith("unix"):
            raise ValueError(
                "front_processes needs listen to be host:port, because processes cannot share a Unix socket"
            )
        if self.spool:
            raise ValueError("front_processes cannot be used with spool, because a spool belongs to one process")
        return self

    @field_validator("pooling_urls")
    @classmethod
    def _are_http(cls, urls: list[str]) -> list[str]:
        """Raises ValueError for what is not the URL of a server."""
        parts = [urlsplit(url) for url in urls]
        # Reading a port that is no number raises, too.
        if not all(each.scheme in ("http", "https") and each.hostname and each.port != 0 for each in parts):
            raise ValueError("not URLs of servers, such as http://127.0.0.1:8000")
        return urls

    @field_validator("reward_models")
    @classmethod
    def _are_names(cls, value: list[str]) -> list[str]:
        """Raises ValueError for a name that no reward model can have."""
        return list(further_models(value))
