"""The row "Processes": the event loop, what each process uses of its machine, and its build."""

from __future__ import annotations

from rewardloop_observability.panels import Alarm, Panel, graph
from rewardloop_observability.queries import AT, EVERY, quantile


def panels() -> list[Panel]:
    return [*_cores_and_memory(), *_disks(), *_python(), *_gpus(), _build()]


def _cores_and_memory() -> list[Panel]:
    return [
        graph(
            "Event loop lag",
            "s",
            (quantile(0.5, "rewardloop_event_loop_lag_seconds", "instance"), "p50 {{instance}}"),
            (quantile(0.99, "rewardloop_event_loop_lag_seconds", "instance"), "p99 {{instance}}"),
            about="How late the event loop wakes a sleeping task. Every request waits while something blocks the loop.",
            alarm=Alarm(amber=0.02, red=0.1),
        ),
        graph(
            "CPU",
            "short",
            (f"rate(process_cpu_seconds_total{{{AT}}}{EVERY})", "{{job}} {{instance}}"),
            about="Number of cores in use.",
        ),
        graph(
            "Memory",
            "bytes",
            (f"process_resident_memory_bytes{{{AT}}}", "{{job}} {{instance}}"),
            about="Resident memory.",
        ),
        graph(
            "File descriptors",
            "percentunit",
            (f"process_open_fds{{{AT}}} / process_max_fds{{{AT}}}", "{{job}} {{instance}}"),
            about="Share of the allowed file descriptors that are open. Each connection takes one.",
            alarm=Alarm(amber=0.5, red=0.8),
        ),
    ]


def _disks() -> list[Panel]:
    free, size = f"rewardloop_disk_free_bytes{{{AT}}}", f"rewardloop_disk_size_bytes{{{AT}}}"
    return [
        graph(
            "Disks in use",
            "percentunit",
            (f"1 - {free} / {size}", "{{job}} {{instance}} {{place}}"),
            about="Share of each disk that is not free, by what is kept on it. Object stores are left out.",
            alarm=Alarm(amber=0.7, red=0.95),
            highest=1,
        ),
    ]


def _python() -> list[Panel]:
    return [
        graph(
            "Garbage collections",
            "short",
            (f"rate(python_gc_collections_total{{{AT}}}{EVERY})", "{{job}} {{instance}} generation {{generation}}"),
            about="Collections in each second. Collections of generation 2 stop the event loop longest.",
        ),
        graph(
            "Up since",
            "s",
            (f"time() - process_start_time_seconds{{{AT}}}", "{{job}} {{instance}}"),
            about="Age of each process. A fall is a restart.",
        ),
    ]


def _gpus() -> list[Panel]:
    return [
        graph(
            "GPU memory",
            "bytes",
            (f"rewardloop_gpu_memory_used_bytes{{{AT}}}", "{{instance}} GPU {{gpu}} used"),
            (f"rewardloop_gpu_memory_total_bytes{{{AT}}}", "{{instance}} GPU {{gpu}} total"),
            about="Empty without a GPU or without the package nvidia-ml-py.",
        ),
        graph(
            "GPU utilisation",
            "percentunit",
            (f"rewardloop_gpu_utilisation_ratio{{{AT}}}", "{{instance}} GPU {{gpu}}"),
            about="Share of the time in which a kernel ran.",
            highest=1,
        ),
    ]


def _build() -> Panel:
    return graph(
        "Build",
        "short",
        (
            f"count by (job, version, python) (rewardloop_build_info{{{AT}}})",
            "{{job}} {{version}} Python {{python}}",
        ),
        about="Number of processes that run each version.",
    )
