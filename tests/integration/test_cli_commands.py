"""The commands: what they print, how they end, what they import."""

from __future__ import annotations

import gzip
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from support.client_servers import Services, serving, status
from typer.testing import CliRunner

from rewardloop.formats.messages import turns
from rewardloop.formats.store import Manifest, ModelStore
from rewardloop.formats.storing.evaluated import Evaluated
from rewardloop.formats.vocabulary import UNTRAINED_HEADS_NOTE
from rewardloop_cli import processes
from rewardloop_cli.bench.report import percentile
from rewardloop_cli.connect import open_client
from rewardloop_cli.main import app
from rewardloop_cli.metrics_page import MetricsPage, PageUnreachable
from rewardloop_cli.score import _print_table
from rewardloop_cli.status import _trainer_figures
from rewardloop_client import AsyncRewardloopClient, ModelVersion, ResponseScore, ScorePart, ScoreResult, Timings


@pytest.fixture
def services() -> Services:
    return Services()


@pytest.fixture
def server(services: Services) -> Iterator[str]:
    with serving(services) as address:
        yield address


def _run(*arguments: str, stdin: str | None = None):
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments, input=stdin, catch_exceptions=False)


def _loaded_by(*arguments: str) -> set[str]:
    code = (
        "import sys\nfrom rewardloop_cli.main import app\n"
        f"try:\n    app({list(arguments)!r})\nexcept SystemExit:\n    pass\n"
        "print('\\n'.join(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage" in done.stdout
    return set(done.stderr.splitlines())


@pytest.mark.parametrize("arguments", [["--help"], ["feedback", "import", "--help"], ["score", "-h"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    heavy = {"grpc", "google.protobuf", "rich.console", "torch", "numpy", "rewardloop_client", "asyncio"}
    assert not heavy & _loaded_by(*arguments)


def test_help_names_every_command() -> None:
    names = [
        "up",
        "down",
        "demo",
        "serve",
        "train",
        "policy-worker",
        "policy-train",
        "reward-train",
        "score",
        "feedback",
        "models",
        "status",
        "export",
        "sft",
        "bench",
    ]
    text = _run("--help").output
    assert [name for name in names if f"  {name} " not in text] == []


def test_a_process_gets_its_arguments_as_they_are(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "stand_in_process.py").write_text(
        "def main(argv):\n    print('got', argv)\n    return 7 if '--fail' in argv else None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    process = processes.Process("stand-in", "stand_in_process", "server", "help")
    monkeypatch.setattr(processes, "PROCESSES", (process,))
    import typer

    fresh = typer.Typer()
    processes.add_process_commands(fresh)
    fresh.command("other")(lambda: None)
    arguments = ["--help", "-x", "pos", "--a=b", "--", "--c", "-abc"]
    done = CliRunner().invoke(fresh, ["stand-in", *arguments])
    assert done.output == f"got {arguments}\n"
    assert done.exit_code == 0
    assert CliRunner().invoke(fresh, ["stand-in", "--fail"]).exit_code == 7


def test_a_missing_extra_is_named_with_its_install_command(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "needs_more.py").write_text("import surely_not_installed.inside\n")
    (tmp_path / "broken.py").write_text("import rewardloop_server.no_such_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert processes.run_process(processes.Process("serve", "needs_more", "server", ""), []) == 2
    assert "rewardloop serve needs more packages: pip install 'rewardloop[server]'" in capsys.readouterr().err
    with pytest.raises(ModuleNotFoundError):
        processes.run_process(processes.Process("serve", "broken", "server", ""), [])


def test_access_options_end_with_the_call_that_got_them(server: str) -> None:
    _run("--ca=/nowhere/ca.crt", "score", "--help")
    with open_client(server) as client:
        assert client.score("p", ["r"]).scores


def test_score_prints_the_best_response_first(server: str) -> None:
    done = _run("score", "--server", server, "--prompt", "q", "short", "the longest", "middling")
    lines = [line for line in done.output.splitlines() if "+" in line]
    assert [word for line in lines for word in ("short", "longest", "middling") if word in line] == [
        "longest",
        "middling",
        "short",
    ]
    assert "reward version 1" in done.output
    as_json = json.loads(_run("score", "--server", server, "--json", "--prompt", "q", "ab").output)
    assert (as_json["scores"], as_json["model_version"]) == ([2.0], "1")


def test_the_table_of_a_mixture_has_its_parts_and_no_logit(capsys: pytest.CaptureFixture[str]) -> None:
    one = ScoreResult((ResponseScore(1.5, 0.0, 0.1, 12, False),), ModelVersion("1", ""), Timings(1, 2, 3))
    mixed = replace(one, parts=(ScorePart("helpful", "helpful", None, (0.75,), (0.1,), 1.0, 1.0),))
    _print_table(["an answer"], one, "")
    _print_table(["an answer"], mixed, "")
    single, mixture = capsys.readouterr().out.split("reward version 1")
    assert "logit" in single
    assert "logit" not in mixture
    assert "+0.7500 (below)" in mixture


def test_score_reads_and_writes_jsonl_in_order(server: str, tmp_path: Path) -> None:
    rows = [
        '{"prompt": "q", "responses": ["a", "abc"]}',
        "{oops",
        '{"prompt": [{"role": "user", "content": "q"}], "chosen": "ab", "rejected": "a"}',
        "",
        '{"prompt": "q", "responses": ["a", ""]}',
        '{"prompt": "q", "response": "abcd"}',
    ]
    target = tmp_path / "out.jsonl"
    arguments = ["score", "--server", server, "--input", "-", "--output", str(target)]
    done = _run(*arguments, stdin="\n".join(rows))
    written = [json.loads(line) for line in target.read_text().splitlines()]
    assert [r["line"] for r in written] == [1, 2, 3, 5, 6]
    assert [r.get("scores") for r in written] == [[1, 3], None, [2, 1], None, [4]]
    assert "not JSON" in written[1]["error"]
    assert done.exit_code == 1
    assert "2 of 5 lines failed" in done.output
    packed = tmp_path / "in.jsonl.gz"
    packed.write_bytes(gzip.compress("\n".join(rows).encode()))
    assert _run("score", "--server", server, "--input", str(packed), "--output", str(target)).exit_code == 1
    assert [json.loads(line) for line in target.read_text().splitlines()] == written


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["score"], "give --prompt"),
        (["score", "--prompt", "q"], "give --prompt"),
        (["score", "--prompt", "q", "a", "--lane", "fast"], "production or trainer"),
        (["score", "--input", "/no/such/file"], "no such file"),
        (["score", "--prompt", "q", "a", "--server", "127.0.0.1:1"], "Unreachable"),
        (["score", "--prompt", "q", "a", "--server", "nowhere"], "not host:port"),
        (["models", "list", "--server", "127.0.0.1:1"], "Unreachable"),
        (["models", "canary"], "either VERSION or --end"),
        (["models", "shadow", "3", "--end"], "either VERSION or --end"),
        (["feedback", "import", "x", "--tag", "novalue"], "key=value"),
        (["feedback", "import", "x", "--source", "robot"], "human, llm_judge or implicit"),
        (["bench", "--lane", "fast"], "production or trainer"),
        (["bench", "--rpc", "carrier-pigeon"], "score, batch or stream"),
        (["bench", "--rate", "0%"], "neither requests a second"),
        (["bench", "--rate", "fast"], "neither requests a second"),
        (["bench", "--rate", "5", "--sweep", "10%"], "not both"),
        (["bench", "--lengths", "tall"], "short or real"),
        (["bench", "--texts", "/no/such/file"], "no such file"),
        (["bench", "--plot", "/no/such/directory/p.png"], "no directory"),
        (["bench", "--server", "127.0.0.1:1"], "Unreachable"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_status_2(arguments: list[str], complaint: str) -> None:
    done = _run(*arguments)
    assert done.exit_code == 2
    assert complaint in done.output
    assert len(done.output.splitlines()) == 1


def test_models_are_listed_shown_and_moved(server: str) -> None:
    listed = _run("models", "list", "reward", "--server", server).output
    assert [line.split()[3] for line in listed.splitlines() if "reward" in line] == ["3", "2", "1"]
    assert "version 1, active" in _run("models", "show", "reward", "--server", server).output
    assert "version 2 is active (before: 1)" in _run("models", "promote", "reward", "2", "--server", server).output
    assert "version 1 is active (before: 2)" in _run("models", "rollback", "policy", "--server", server).output


METRICS = {f"gate_accuracy_difference_{end}": 0.01 for end in ("lower", "upper")} | {"gate_candidate_accuracy": 0.7123}
MANIFEST = {
    "base": "some/base",
    "code_version": "0.1.0",
    "data": {"first_stream_id": "1-0", "last_stream_id": "9-0", "signals": 9, "arrivals": list(range(1000))},
    "files": {f"file{i}": "0" * 64 for i in range(20)},
    "text_format": {"parts": [["a", i] for i in range(50)]},
    "notes": {"precision": "int8 was refused"},
}


class Measured(Services):
    """Versions with metrics, and one with a manifest as long as a real one."""

    def _info(self, model: str, version: str) -> Any:
        info = super()._info(model, version)
        info.metrics.update(METRICS if model == "reward" else {"gate_win_rate": 0.625})
        info.version.digest = "0123456789abcdef" * 4
        info.manifest_json = json.dumps(MANIFEST)
        return info


@pytest.fixture
def measured() -> Iterator[str]:
    with serving(Measured()) as address:
        yield address


def test_a_list_of_models_fits_a_terminal(measured: str) -> None:
    done = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["models", "list", "--server", measured])
    lines = done.output.splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in done.output
    assert sum("accuracy 0.712" in line for line in lines) == 3
    assert sum("win rate 0.625" in line for line in lines) == 3
    assert sum("0123456789ab" in line for line in lines) == 6


def test_a_version_is_shown_on_one_screen_and_whole_when_asked_for(measured: str) -> None:
    short = _run("models", "show", "reward", "--server", measured).output
    assert len(short.splitlines()) <= 30
    for part in (
        "0123456789abcdef" * 4,
        "some/base",
        "9 signals, 1-0 to 9-0",
        "20: file0",
        "0.7123",
        "int8 was refused",
    ):
        assert part in short
    whole = _run("models", "show", "reward", "--all", "--server", measured).output
    assert json.loads(whole[whole.index("\n{") :]) == MANIFEST


def test_the_version_is_printed() -> None:
    done = _run("--version")
    assert (done.exit_code, done.output.split()[0]) == (0, "rewardloop")


def test_canary_and_shadow_are_set_and_ended(server: str, services: Services) -> None:
    done = _run("models", "canary", "2", "--share", "0.05", "--reason", "try it", "--server", server)
    assert "reward version 2 is the canary for 5.0% of the requests" in done.output
    done = _run("models", "shadow", "3", "--server", server)
    assert "reward version 3 is the shadow for 100.0% of the requests" in done.output
    assert "reward has no canary now" in _run("models", "canary", "--end", "--server", server).output
    assert "reward has no shadow now" in _run("models", "shadow", "--end", "--server", server).output
    done = _run("models", "canary", "--end", "--model", "policy", "--server", server)
    assert "policy has no canary now" in done.output
    assert [(r.model, r.version, r.share) for r in services.roles] == [
        ("reward", "2", 0.05),
        ("reward", "3", 1.0),
        ("reward", "", 0.05),
        ("reward", "", 1.0),
        ("policy", "", 0.05),
    ]


def test_models_failures_name_their_reason(server: str, services: Services) -> None:
    services.failures = [status("NOTHING_TO_ROLL_BACK")]
    done = _run("models", "rollback", "reward", "--server", server)
    assert (done.exit_code, "NOTHING_TO_ROLL_BACK" in done.output) == (2, True)


def _bench(server: str, target: Path, *options: str) -> dict[str, Any]:
    quick = ["--seconds", "0.5", "--warm-up", "0", "--callers", "3", "--responses", "2", "--distinct", "10"]
    done = _run("bench", "--server", server, *quick, "--json", str(target), *options)
    failed = any(run["failures"] for run in json.loads(target.read_text())["runs"])
    assert done.exit_code == int(failed), done.output
    return json.loads(target.read_text())


@pytest.mark.parametrize("rpc", ["score", "batch"])
def test_bench_counts_what_it_saw(server: str, services: Services, tmp_path: Path, rpc: str) -> None:
    (run,) = _bench(server, tmp_path / "b.json", "--rpc", rpc, "--batch", "4", "--callers", "4")["runs"]
    groups = {"score": 1, "batch": 4}[rpc]
    assert run["failures"] == {}
    assert run["versions"] == {"1": run["answered"] * groups}
    assert run["responses_per_s"] == pytest.approx(run["requests_per_s"] * groups * 2)
    assert 10 < run["answered"] <= len(services.calls) - 1


def test_bench_counts_failures_by_reason(server: str, services: Services, tmp_path: Path) -> None:
    services.failures = [lambda context: None, status("QUEUE_FULL", retry_after_s=0.01)]
    (run,) = _bench(server, tmp_path / "b.json", "--rpc", "score")["runs"]
    assert run["failures"] == {"QUEUE_FULL": 1}


def test_bench_measures_a_server_that_is_full_at_first(server: str, services: Services, tmp_path: Path) -> None:
    services.failures = [status("QUEUE_FULL", retry_after_s=0.01)]
    (run,) = _bench(server, tmp_path / "b.json")["runs"]
    assert run["failures"] == {}
    assert run["answered"] > 0


def test_bench_times_an_open_loop_from_when_requests_were_due(server: str, services: Services, tmp_path: Path) -> None:
    stall_s = 0.4
    services.failures = [lambda context: None, lambda context: time.sleep(stall_s)] + [lambda context: None] * 3
    runs = _bench(server, tmp_path / "b.json", "--rate", "60", "--seconds", "1")["runs"]
    assert [run["loop"] for run in runs] == ["open"]
    assert runs[0]["latency_ms"]["max"] >= 1000 * stall_s
    assert runs[0]["answered"] > 20, "arrivals do not wait for a stalled request"


def test_bench_takes_rates_as_shares_of_a_saturation_that_it_measures(server: str, tmp_path: Path) -> None:
    plot = tmp_path / "latency.png"
    runs = _bench(server, tmp_path / "b.json", "--sweep", "10%,20%", "--plot", str(plot))["runs"]
    saturation, *swept = runs
    assert saturation["loop"] == "closed"
    assert [run["offered_per_s"] / saturation["requests_per_s"] for run in swept] == pytest.approx([0.1, 0.2])
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_bench_asks_the_texts_of_a_file(server: str, services: Services, tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"prompt": "q", "responses": ["a", "b", "c"]}\n{"prompt": "q", "chosen": "a", "rejected": "b"}\n')
    (run,) = _bench(server, tmp_path / "b.json", "--texts", str(texts))["runs"]
    assert run["responses_per_s"] / run["requests_per_s"] == pytest.approx(2.5, rel=0.1)
    texts.write_text('{"prompt": "q"}\n')
    done = _run("bench", "--server", server, "--texts", str(texts))
    assert (done.exit_code, "line 1 has no responses" in done.output) == (2, True)


def test_percentiles_are_observed_values() -> None:
    values = [float(n) for n in range(1, 101)]
    assert [percentile(values, share) for share in (0.5, 0.9, 0.99, 1.0)] == [50, 90, 99, 100]
    assert percentile([3.0], 0.5) == 3.0


@pytest.fixture
def metrics_url() -> Iterator[str]:
    registry = CollectorRegistry()
    requests = Counter("rewardloop_requests_total", "x", ["method", "code"], registry=registry)
    requests.labels(method="Score", code="OK").inc(1234)
    seconds = Histogram("rewardloop_stage_seconds", "x", ["stage", "lane"], buckets=(0.01, 0.1, 1), registry=registry)
    for value in [0.005] * 50 + [0.05] * 50:
        seconds.labels(stage="total", lane="production").observe(value)
    Gauge("rewardloop_trainer_phase", "x", ["phase"], registry=registry).labels(phase="train").set(1)
    page = generate_latest(registry)

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *arguments: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}/metrics"
    http.shutdown()
    http.server_close()


def test_quantiles_come_from_the_buckets(metrics_url: str) -> None:
    page = MetricsPage.fetch(metrics_url)
    assert page.quantile("rewardloop_stage_seconds", 0.25, stage="total") == pytest.approx(0.005)
    assert page.quantile("rewardloop_stage_seconds", 0.75) == pytest.approx(0.055)
    assert page.quantile("rewardloop_stage_seconds", 0.75, stage="run") is None
    assert page.total("rewardloop_requests_total", method="Score") == 1234
    assert page.total("rewardloop_other") is None


def test_a_page_may_be_named_by_host_and_port_alone(metrics_url: str) -> None:
    address = metrics_url.removeprefix("http://").removesuffix("/metrics")
    assert MetricsPage.fetch(address).total("rewardloop_requests_total", method="Score") == 1234


def _page_of_a_trainer(steps: float) -> MetricsPage:
    registry = CollectorRegistry()
    phase = Gauge("rewardloop_trainer_phase", "x", ["model", "phase"], registry=registry)
    for model, now in (("reward", "train"), ("policy", "idle")):
        for name in ("train", "idle"):
            phase.labels(model, name).set(name == now)
    Gauge("rewardloop_trainer_loss", "x", ["model"], registry=registry).labels("reward").set(steps and 0.25)
    Counter("rewardloop_trainer_steps", "x", ["model"], registry=registry).labels("reward").inc(steps)
    return MetricsPage(generate_latest(registry).decode())


def test_phases_name_their_model_and_a_loss_is_shown_once_there_was_a_step() -> None:
    before, after = (list(_trainer_figures(_page_of_a_trainer(steps))) for steps in (0, 3))
    assert before == [("phase, reward", "train"), ("phase, policy", "idle"), ("loss, reward", "-")]
    assert after[-1] == ("loss, reward", "0.2500")


@pytest.fixture
def unreachable_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:1")
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.usefixtures("unreachable_proxy")
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_calls_on_this_machine_go_round_the_proxy(server: str, metrics_url: str, host: str) -> None:
    address = server.replace("127.0.0.1", host)
    assert _run("health", "--server", address).output == "SERVING\n"
    assert _run("health", "--metrics", metrics_url.replace("127.0.0.1", host)).output == "UP\n"
    assert _run("score", "--server", address, "--prompt", "q", "a").exit_code == 0


@pytest.mark.usefixtures("unreachable_proxy")
async def test_asyncio_calls_on_this_machine_go_round_the_proxy(server: str) -> None:
    async with AsyncRewardloopClient(server) as client:
        assert await client.health()


@pytest.mark.usefixtures("unreachable_proxy")
def test_a_page_elsewhere_is_asked_for_through_the_proxy() -> None:
    assert "Connection refused" in _run("health", "--metrics", "http://192.0.2.1/metrics").output


@pytest.mark.parametrize("address", ["127.0.0.1:50051", "http://127.0.0.1/metrics"])
def test_an_address_in_the_place_of_a_service_is_refused_with_the_flag_that_takes_it(address: str) -> None:
    done = _run("health", address)
    assert (done.exit_code, "--server" in done.stderr) == (2, True)


def test_a_page_that_never_answers_is_named_with_the_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(PageUnreachable, match=r"within 0.2 s"):
        MetricsPage.fetch(f"http://127.0.0.1:{silent.getsockname()[1]}/metrics", 0.2)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/metrics", "nonsense"])
def test_a_page_that_is_not_there_says_why(url: str) -> None:
    with pytest.raises(PageUnreachable):
        MetricsPage.fetch(url)


def test_status_shows_what_is_up_and_what_is_down(server: str, metrics_url: str) -> None:
    done = _run(
        "status", "--server", server, "--server-metrics", metrics_url, "--trainer-metrics", "http://127.0.0.1:1"
    )
    assert done.exit_code == 1
    assert "Score OK" in done.output
    assert "1,234" in done.output
    assert "active version" in done.output
    assert "reward: 37 more comparisons." in done.output
    assert "down: Connection refused" in done.output
    everything_down = _run("status", "--server", "127.0.0.1:1", "--trainer-metrics", metrics_url)
    assert everything_down.output.count("unreachable") == 4
    assert "train" in everything_down.output


def test_generate_prints_the_answers_alone_on_standard_output(server: str) -> None:
    done = _run("generate", "Why?", "--n", "2", "--server", server)
    assert (done.exit_code, done.stdout) == (0, "hello\nhello\n")
    assert "answer 2 of 2" in done.stderr
    assert "policy version 4" in done.stderr
    assert "--max-new-tokens allows more" in done.stderr
    assert "generation g1" in done.stderr
    found = json.loads(_run("generate", "Why?", "--json", "--server", server).stdout)
    assert (found["generation_id"], found["policy_version"], found["truncated"]) == ("g1", "4", None)
    assert [(each["text"], each["finish_reason"]) for each in found["candidates"]] == [("hello", "length")]


class Asked(Services):
    """Keeps what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Any] = []

    def Generate(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        return super().Generate(request, context)


def test_generate_takes_its_prompt_from_an_argument_a_file_or_standard_input(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Why?"}]},
    ]
    services = Asked()
    listed, wrapped = tmp_path / "list.json", tmp_path / "object.json"
    listed.write_text(json.dumps(messages, indent=1))
    wrapped.write_text(json.dumps({"messages": messages}))
    with serving(services) as address:
        for arguments, stdin in (
            (["Why?"], None),
            ([], "Why?\n"),
            (["-"], "Why?"),
            (["--messages", str(listed)], None),
            (["--messages", str(wrapped)], None),
            (["--messages", "-"], json.dumps(messages)),
        ):
            settings = ["--max-new-tokens", "7", "--temperature", "0", "--top-p", "0.5", "--seed", "3"]
            assert _run("generate", *arguments, *settings, "--server", address, stdin=stdin).exit_code == 0
    asked = [[(turn.role, turn.content) for turn in turns(each.prompt)] for each in services.requests]
    assert asked == [[("user", "Why?")]] * 3 + [[("system", "Be brief."), ("user", "Why?")]] * 3
    assert {(r.max_new_tokens, r.temperature, r.top_p, r.seed) for r in services.requests} == {(7, 0.0, 0.5, 3)}


def test_generate_hands_on_the_tools_beside_the_messages() -> None:
    services = Asked()
    tools = [{"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}]
    row = {"messages": [{"role": "user", "content": "What time is it?"}], "tools": tools}
    with serving(services) as address:
        done = _run("generate", "--messages", "-", "--server", address, stdin=json.dumps(row))
        wrong = _run("generate", "--messages", "-", "--server", address, stdin=json.dumps({**row, "tools": [5]}))
    assert done.exit_code == 0
    assert [[json.loads(tool) for tool in each.prompt.tools_json] for each in services.requests] == [tools]
    assert wrong.exit_code == 2
    assert "tools[0]: is int, not a JSON schema" in wrong.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["Why?", "--messages", "m.json"], "either a PROMPT or --messages"),
        (["--messages", "no-such-file.json"], "no-such-file.json: no such file or directory"),
        (["--messages", "-"], "- is not JSON"),
        (["  "], "prompt: is empty"),
        (["Why?", "--policy-version", "9"], "policy version 9 does not answer: live is 1"),
        (["Why?", "--policy-version", "1"], "policy version 1 does not answer: live is 4"),
        (["Why?", "--server", "127.0.0.1:1", "--timeout", "1"], "127.0.0.1:1"),
    ],
)
def test_generate_fails_in_one_line(server: str, arguments: list[str], complaint: str) -> None:
    done = _run("generate", "--server", server, *arguments, stdin="{oops")
    assert (done.exit_code, done.stdout) == (2, "")
    assert complaint in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_models_are_read_from_a_store_without_a_server(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    notes = {UNTRAINED_HEADS_NOTE: "the score heads are new"}
    store.publish(Manifest("reward", base="some/base", notes=notes), lambda directory: None)
    store.publish(Manifest("reward", base="some/base", parent="1", metrics=METRICS), lambda directory: None)
    (tmp_path / "reward" / "3").mkdir()
    (tmp_path / "reward" / "3" / "manifest.json").write_text("{")
    done = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["models", "list", "--store", str(tmp_path)])
    assert done.exit_code == 0
    assert max(map(len, done.output.splitlines())) <= 80
    assert [word in done.output for word in ("damaged", "accuracy 0.712", "random heads")] == [True] * 3
    listed = json.loads(_run("models", "list", "reward", "--store", str(tmp_path), "--json").output)
    assert [(each["version"], each["parent"], each["untrained_heads"]) for each in listed] == [
        ("3", None, False),
        ("2", "1", False),
        ("1", None, True),
    ]
    shown = _run("models", "show", "reward", "1", "--store", str(tmp_path)).output
    assert "WARNING: the score heads are new" in shown
    assert "some/base" in shown
    found = json.loads(_run("models", "show", "reward", "2", "--store", str(tmp_path), "--json").output)
    assert (found["metrics"], found["manifest"]["base"]) == (METRICS, "some/base")


def test_what_an_evaluation_found_is_shown_with_its_version(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    made = [store.publish(Manifest("reward", base=f"{i}"), lambda directory: None) for i in range(2)]
    assert "evaluated" not in _run("models", "list", "--store", str(tmp_path)).output
    figures = {"accuracy": 0.71, "accuracy_lower": 0.65, "accuracy_upper": 0.77, "ceiling": 0.8}
    store.evaluated.keep("reward", "2", Evaluated(made[1].digest, time.time() - 7200, "reward 1", figures, "r"))
    listed = _run("models", "list", "--store", str(tmp_path)).output
    assert "accuracy 0.710 (0.650 to 0.770)" in listed
    shown = _run("models", "show", "reward", "2", "--store", str(tmp_path)).output.splitlines()
    found = dict(re.split(r"  +", line, maxsplit=1) for line in shown if "  " in line)
    assert (found["evaluated"], found["report"]) == ("2 h ago, against reward 1", "r")
    assert found["evaluation ceiling"] == "0.8"
    first, second = reversed(json.loads(_run("models", "list", "--store", str(tmp_path), "--json").output))
    assert first["evaluation"] is None
    assert second["evaluation"]["figures"] == figures
    assert (second["evaluation"]["against"], second["evaluation"]["report_id"]) == ("reward 1", "r")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["show", "reward", "--store", "/no/such/store"], "/no/such/store: there is no such model store"),
        (["list", "--store", "/no/such/store"], "/no/such/store: there is no such model store"),
        (["list", "--store", "nothing://x"], "nothing://x: "),
    ],
)
def test_a_store_that_cannot_be_read_is_named(arguments: list[str], complaint: str) -> None:
    done = _run("models", *arguments)
    assert (done.exit_code, complaint in done.stderr) == (2, True)


def test_a_version_with_untrained_heads_is_marked_in_the_list_of_a_server() -> None:
    class Untrained(Services):
        def GetVersion(self, request: Any, context: Any) -> Any:
            found = super().GetVersion(request, context)
            found.version.manifest_json = json.dumps({"notes": {UNTRAINED_HEADS_NOTE: "new"}})
            return found

    with serving(Untrained()) as address:
        assert "random heads" in _run("models", "list", "reward", "--server", address).output


def test_what_cannot_be_read_of_a_store_hides_no_other_version(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    for _ in range(3):
        store.publish(Manifest("reward", metrics={"gate_candidate_accuracy": 0.5}), lambda directory: None)
    manifests = {number: tmp_path / "reward" / str(number) / "manifest.json" for number in (1, 2)}
    held = json.loads(manifests[1].read_text())
    held["created_at"] = "2026-01-01T00:00:00"  # without a time zone
    held["metrics"] = {"gate_candidate_accuracy": float("nan")}
    manifests[1].write_text(json.dumps(held))
    manifests[2].unlink()
    manifests[2].mkdir()
    listed = _run("models", "list", "reward", "--store", str(tmp_path), "--json")
    found = json.loads(listed.stdout, parse_constant=pytest.fail)
    assert [(each["version"], each["state"]) for each in found] == [("3", "stored"), ("2", "damaged"), ("1", "stored")]
    assert found[2]["metrics"] == {"gate_candidate_accuracy": None}
    assert _run("models", "list", "reward", "--store", str(tmp_path)).exit_code == 0
    shown = _run("models", "show", "reward", "2", "--store", str(tmp_path))
    assert (shown.exit_code, len(shown.stderr.splitlines())) == (2, 1)


def test_an_evaluation_that_cannot_be_read_hides_no_version(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    for _ in range(2):
        store.publish(Manifest("reward"), lambda directory: None)
    (tmp_path / "reward" / ".evaluated" / "1.json").mkdir(parents=True)
    listed = _run("models", "list", "reward", "--store", str(tmp_path), "--json")
    assert [(each["version"], each["evaluation"]) for each in json.loads(listed.stdout)] == [("2", None), ("1", None)]
    assert listed.exit_code == 0
    shown = _run("models", "show", "reward", "1", "--store", str(tmp_path))
    assert shown.exit_code == 0
    assert ".evaluated/1.json cannot be read" in shown.stderr
