"""Where the reward model runs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Literal

import onnxruntime as ort
import pytest
from support.gpu_runtime import install

from rewardloop.process.settings import parse
from rewardloop_server.device import choose
from rewardloop_server.device.choose import Device, choose_device, installed_builds
from rewardloop_server.fronts.order import Order
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.scoring_parts import engine_of
from rewardloop_server.settings import ServeSettings

ROOT = Path(__file__).parents[3]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def test_auto_takes_what_this_onnxruntime_has() -> None:
    device = choose_device("auto", threads=1, spin=False)
    assert device.providers[0] in ort.get_available_providers()
    assert device.kind == ("cuda" if "CUDAExecutionProvider" in ort.get_available_providers() else "cpu")


@pytest.mark.parametrize(
    ("threads", "streams", "expected"), [(1, 0, 1), (2, 0, 2), (8, 0, 2), (8, 4, 4), (2, 4, 2), (4, 1, 1)]
)
def test_a_cpu_has_two_streams_where_it_has_two_threads(threads: int, streams: int, expected: int) -> None:
    assert choose_device("cpu", threads=threads, spin=False, streams=streams).streams == expected


@pytest.mark.parametrize("kind", ["cuda", "tensorrt"])
def test_device_that_is_absent_is_refused_with_what_there_is(kind: Literal["cuda", "tensorrt"]) -> None:
    provider = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}[kind]
    if provider in ort.get_available_providers():
        pytest.skip(f"this ONNX Runtime has {provider}")
    with pytest.raises(RuntimeError, match=f"device is {kind}, but this ONNX Runtime has only .*CPUExecutionProvider"):
        choose_device(kind, threads=1, spin=False)


def test_two_builds_that_overwrite_each_other_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    assert installed_builds() == {"onnxruntime"}
    monkeypatch.setattr(choose, "installed_builds", lambda: {"onnxruntime", "onnxruntime-gpu"})
    with pytest.raises(RuntimeError, match="pip uninstall -y onnxruntime onnxruntime-gpu, and install"):
        choose_device("cuda", threads=1, spin=False)


def packages(extra: str) -> set[str]:
    """What an extra asks for, with what the extras that it names ask for."""
    found = set[str]()
    for wanted in EXTRAS[extra]:
        if match := re.match(r"rewardloop\[(.+)\]", wanted):
            found = found.union(*(packages(part) for part in match[1].split(",")))
        else:
            found.add(re.split(r"[\[><=!]", wanted)[0])
    return found


def builds(*extras: str) -> set[str]:
    return {name for extra in extras for name in packages(extra) if "onnxruntime" in name}


def test_what_a_gpu_machine_installs_has_one_build_of_onnxruntime() -> None:
    assert builds("gpu", "trainer-gpu") == {"onnxruntime-gpu"}
    assert builds("server", "trainer") == {"onnxruntime"}
    assert packages("trainer") - {"onnxruntime"} == packages("trainer-gpu") - {"onnxruntime-gpu"}
    assert {extra for extra in EXTRAS if "onnxruntime-gpu" in builds(extra)} == {"gpu", "trainer-gpu"}
    assert builds("judge", "lm-eval", "vllm") == set()  # whichever build stands beside them is kept


def test_no_install_command_that_a_person_is_told_brings_two_builds() -> None:
    told = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    told += [path for room in ("client", "server", "trainer", "deploy", "protos") for path in (ROOT / room).rglob("*")]
    commands = {
        match[1]
        for path in told
        if path.suffix in (".md", ".py")
        for match in re.finditer(r"(?:pip install '?\.|rewardloop)\[([a-z0-9,-]+)\]", path.read_text())
    }
    assert {"gpu", "gpu,trainer-gpu", "gpu,trainer-gpu,judge", "local", "trainer,vllm"} <= commands
    placeholder = {"extra"}  # of a docstring that explains what an extra is
    found = {command: builds(*command.split(",")) for command in commands - placeholder}
    assert {command: named for command, named in found.items() if len(named) > 1} == {}


def test_a_gpu_machine_without_torch_gets_the_libraries_of_cuda() -> None:
    (build,) = (wanted for wanted in EXTRAS["gpu"] if wanted.startswith("onnxruntime"))
    assert build.startswith("onnxruntime-gpu[cuda,cudnn]>=")


class _Stub:
    """An ONNX Runtime that was built with CUDA, on a machine whose driver is absent: it opens sessions on the CPU."""

    __version__ = "1.31.1"

    def get_available_providers(self) -> list[str]:
        return ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]

    def preload_dlls(self) -> None:
        print("Failed to load libcudnn.so.9")

    def InferenceSession(
        self, graph: bytes, providers: list[str], provider_options: list[dict[str, str]]
    ) -> ort.InferenceSession:
        assert len(providers) == len(provider_options)
        return ort.InferenceSession(graph, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("kind", ["cuda", "tensorrt"])
def test_device_that_cannot_be_started_is_refused_and_never_replaced_in_silence(
    kind: Literal["cuda", "tensorrt"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rewardloop_server.device.choose.ort", _Stub())
    with pytest.raises(RuntimeError, match=f"device is {kind}:0, but ONNX Runtime could not start"):
        choose_device(kind, threads=1, spin=False)


def test_auto_falls_back_to_the_cpu_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rewardloop_server.device.choose.ort", _Stub())
    assert choose_device("auto", threads=1, spin=False).kind == "cpu"
    said = capsys.readouterr().out
    assert "the GPU cannot be used" in said
    assert "libraries of CUDA could not be loaded" in said
    assert "said='Failed to load libcudnn.so.9'" in said


@pytest.mark.parametrize("kind", ["cuda", "tensorrt"])
def test_libraries_of_cuda_are_loaded_from_their_packages_before_the_device_is_tried(
    kind: Literal["cuda", "tensorrt"], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = install(monkeypatch)  # which starts no session on a GPU without them
    assert choose_device(kind, threads=1, spin=False, device_ids=(2,)) == Device(
        kind, 1, spin=False, binds_adapters=True, device_ids=(2,)
    )
    assert runtime.has_libraries


def test_a_cpu_needs_no_libraries_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = install(monkeypatch)
    assert choose_device("cpu", threads=1, spin=False).names == ("cpu",)
    assert not runtime.has_libraries


def test_every_gpu_that_is_named_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = install(monkeypatch)
    device = choose_device("cuda", threads=1, spin=False, device_ids=(0, 5, 2))
    assert device.names == ("cuda:0", "cuda:5", "cuda:2")
    assert [asked["CUDAExecutionProvider"]["device_id"] for asked in runtime.asked] == ["0", "5", "2"]


@pytest.mark.parametrize("wanted", ["cuda", "auto"])
def test_a_gpu_that_the_machine_does_not_have_is_refused_by_its_name(
    wanted: Literal["cuda", "auto"], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch).gpus = 2
    with pytest.raises(RuntimeError, match=r"device is cuda:2, .*invalid device ordinal.*; leave out its id"):
        choose_device(wanted, threads=1, spin=False, device_ids=(0, 1, 2))


def test_auto_falls_back_to_the_cpu_if_none_of_the_gpus_can_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch).gpus = 2
    assert choose_device("auto", threads=1, spin=False, device_ids=(2, 3)).names == ("cpu",)
    with pytest.raises(RuntimeError, match=r"device is cuda:2, .*; device is cuda:3, .*; --device cpu runs there"):
        choose_device("cuda", threads=1, spin=False, device_ids=(2, 3))


def test_a_session_is_on_one_gpu() -> None:
    device = Device("cuda", 1, spin=False, device_ids=(1, 3))
    assert [each.names for each in device.each()] == [("cuda:1",), ("cuda:3",)]
    with pytest.raises(ValueError, match="too many values"):
        _ = device.provider_options


@pytest.mark.parametrize(
    ("flags", "gpus"),
    [
        ([], (0,)),
        (["--device-id", "2"], (2,)),
        (["--device-ids", "0,1,2,3"], (0, 1, 2, 3)),
        (["--device-ids", "3", "--device-ids", "1"], (3, 1)),
    ],
)
def test_gpus_are_named_by_a_list_or_a_number(flags: list[str], gpus: tuple[int, ...]) -> None:
    settings = parse(ServeSettings, ["--device", "cuda", *flags], "rewardloop serve")
    assert settings.gpus == gpus
    order = Order("engine", 0, Path("/private"), settings)
    assert Order.from_line(order.to_line()).settings.gpus == gpus


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"device": "cpu", "device_id": 1}, "device_id 1 names a GPU, and device is cpu"),
        ({"device": "cpu", "device_ids": [0, 1]}, r"device_ids \[0, 1\] name GPUs, and device is cpu"),
        ({"device_ids": [0, 1, 0]}, r"device_ids name GPUs twice: \[0\]"),
        ({"device_id": 0, "device_ids": [0, 1]}, "device_id and device_ids are both set"),
        ({"device_ids": [0, -1]}, "greater than or equal to 0"),
    ],
)
def test_gpus_that_are_named_wrongly_are_refused(named: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ServeSettings(**named)


def test_a_gpu_multiplies_in_float32_unless_tf32_is_allowed_and_its_memory_can_be_bounded() -> None:
    assert Device("cpu", 1, spin=False).provider_options == [{}]
    exact = dict(zip(*_provided(Device("cuda", 1, spin=False)), strict=True))
    assert exact["CUDAExecutionProvider"]["use_tf32"] == "0"
    assert "gpu_mem_limit" not in exact["CUDAExecutionProvider"]
    bounded = dict(zip(*_provided(Device("tensorrt", 1, False, memory_gb=2.5, tf32=True)), strict=True))
    assert bounded["CUDAExecutionProvider"]["gpu_mem_limit"] == "2500000000"
    assert bounded["CUDAExecutionProvider"]["use_tf32"] == "1"
    assert bounded["CPUExecutionProvider"] == {}


@pytest.mark.parametrize("kind", ["cuda", "tensorrt"])
def test_an_int8_version_is_refused_where_its_products_would_run_on_the_cpu(kind: Literal["cuda", "tensorrt"]) -> None:
    assert Device("cpu", 1, spin=False).refuses("int8") is None
    assert "export it in float16, bfloat16 or float32" in str(Device(kind, 1, spin=False).refuses("int8"))
    assert Device(kind, 1, spin=False).refuses("bfloat16") is None


def _provided(device: Device) -> tuple[list[str], list[dict[str, str]]]:
    return list(device.providers), device.provider_options


def test_serve_says_in_one_line_that_a_device_cannot_be_used() -> None:
    with pytest.raises(SystemExit) as ended:
        engine_of(parse(ServeSettings, ["--device", "cuda"], "rewardloop serve"), ServerMetrics())
    said = str(ended.value)
    assert said.startswith("rewardloop serve: device is cuda, but this ONNX Runtime has only ")
    assert "\n" not in said
