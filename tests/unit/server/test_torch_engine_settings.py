"""The torch engine is chosen by a setting, and its device by what torch sees."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from importlib import util
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from structlog.testing import capture_logs

from rewardloop_server import scoring_parts
from rewardloop_server.device.choose import Device
from rewardloop_server.loading.opened import OpenGraph
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.scoring_parts import engine_of
from rewardloop_server.settings import ServeSettings
from rewardloop_server.torch_engine.device import choose_torch_device, torch_devices
from rewardloop_server.torch_engine.opening import OpenTorch


def test_graphs_are_run_unless_torch_is_chosen() -> None:
    assert engine_of(ServeSettings(device="cpu"), ServerMetrics())[1] is OpenGraph
    with capture_logs() as logs:
        device, opens, child = engine_of(
            ServeSettings(device="cpu", engine="torch", intra_op_threads=3), ServerMetrics()
        )
    assert isinstance(opens, partial)
    assert (opens.func, opens.keywords) == (OpenTorch, {"prefixes": None})
    assert child[-1] == "rewardloop_server.torch_engine.probe"
    assert (device.kind, device.threads, device.streams, device.spin) == ("cpu", 3, 2, False)
    (entry,) = logs
    assert (entry["event"], entry["engine"], entry["device"]) == ("device chosen", "torch", "cpu")


def test_a_package_that_is_missing_is_named_with_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring_parts, "find_spec", lambda name: None if name == "torch" else util.find_spec(name))
    with pytest.raises(SystemExit) as ended:
        engine_of(ServeSettings(engine="torch"), ServerMetrics())
    said = "rewardloop serve: --engine torch needs torch: pip install 'rewardloop[server,trainer]'"
    assert str(ended.value).startswith(said)
    assert "\n" not in str(ended.value)


def test_an_engine_and_a_device_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValidationError, match="device tensorrt runs graphs, and engine is torch"):
        ServeSettings(engine="torch", device="tensorrt")


def test_prompts_are_kept_by_torch_alone() -> None:
    with pytest.raises(ValidationError, match="prefix_cache_mib needs engine torch"):
        ServeSettings(prefix_cache_mib=64)
    metrics = ServerMetrics()
    opens: Any = engine_of(ServeSettings(device="cpu", engine="torch", prefix_cache_mib=64), metrics)[1]
    prefixes = opens.keywords["prefixes"]
    assert prefixes.look_up(prefixes.enter(), 0, b"") is None
    sample = metrics.registry.get_sample_value
    assert sample("rewardloop_prefix_lookups_total", {"outcome": "miss"}) == 1


def test_a_gpu_that_torch_does_not_see_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match=r"device is cuda:0, but torch .* sees 0 GPUs"):
        choose_torch_device("cuda", threads=1)
    with pytest.raises(SystemExit, match="rewardloop serve: device is cuda:0"):
        engine_of(ServeSettings(engine="torch", device="cuda"), ServerMetrics())
    assert choose_torch_device("auto", threads=1).kind == "cpu"


def test_every_gpu_that_is_named_is_tried_with_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("rewardloop_server.torch_engine.device._try", lambda *given: tried.append(given))
    device = choose_torch_device("auto", threads=1, memory_gb=20.0, device_ids=(0, 1))
    assert tried == [(0, 20.0), (1, 20.0)]
    assert (device.names, device.streams) == (("cuda:0", "cuda:1"), 1)
    assert torch_devices(device) == [torch.device("cuda", 0), torch.device("cuda", 1)]
    with pytest.raises(RuntimeError, match="device is cuda:2, but torch"):
        choose_torch_device("cuda", threads=1, device_ids=(0, 2))
    assert torch_devices(Device("cpu", 1, spin=False)) == [torch.device("cpu")]


def test_a_server_that_runs_graphs_imports_no_torch() -> None:
    program = """if True:
        import sys
        import rewardloop_server.serving, rewardloop_server.fronts.engine, rewardloop_server.loading.probe
        from rewardloop_server.observe.metrics import ServerMetrics
        from rewardloop_server.scoring_parts import engine_of
        from rewardloop_server.settings import ServeSettings
        engine_of(ServeSettings(device="cpu"), ServerMetrics())
        print(sorted({"torch", "transformers", "safetensors"} & set(sys.modules)))
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(
        [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True, timeout=120
    )
    assert ran.stdout.splitlines()[-1] == "[]"
