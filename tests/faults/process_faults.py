"""Faults of processes, of the network before a server, and of clocks."""

from __future__ import annotations

import signal
import time

from faults.table import AWAY, GONE, fault
from faults.world import World
from support.processes import ServeProcess
from support.reward_graphs import expected_logit
from support.tcp_proxy import Toxic
from support.tools import tool

from rewardloop_client import Feedback, RewardloopClient

_KILLED = GONE | {"DEADLINE_EXCEEDED"}


@fault("a server is killed (kill -9) and started again", scoring=GONE, feedback=GONE | AWAY)
def server_killed(world: World) -> None:
    world.plain.kill()
    time.sleep(0.5)
    world.plain.start()


@fault(
    "a server is killed while Redis is away and its spool fills", scoring=GONE, feedback=GONE | AWAY | {"STORE_FULL"}
)
def spooling_server_killed(world: World) -> None:
    world.proxy.refuse()
    time.sleep(1.0)
    world.spooling.kill()
    world.spooling.start()
    time.sleep(0.5)
    world.proxy.heal()


@fault("a server is killed while it drains its spool", scoring=GONE, feedback=GONE | AWAY)
def draining_server_killed(world: World) -> None:
    world.proxy.refuse()
    time.sleep(1.0)
    world.proxy.heal()
    world.proxy.toxic = Toxic(latency_s=0.2)
    time.sleep(0.5)
    world.spooling.kill()
    world.proxy.heal()
    world.spooling.start()


@fault("a server stands still (SIGSTOP) for 2 s")
def server_stopped(world: World) -> None:
    assert world.plain.process is not None
    world.plain.process.send_signal(signal.SIGSTOP)
    time.sleep(2.0)
    world.plain.process.send_signal(signal.SIGCONT)


# A call that reaches gRPC while it closes its port is cancelled there, before this project's code sees it.
_ENDED = GONE | {"CANCELLED"}


@fault("a server is told to end (SIGTERM) under load: it drains, exits with 0", scoring=_ENDED, feedback=_ENDED | AWAY)
def server_ended(world: World) -> None:
    assert world.plain.terminate(60) == 0
    world.plain.start()


@fault("the trainer is killed (kill -9) and started again")
def trainer_killed(world: World) -> None:
    for _ in range(2):
        time.sleep(0.3)
        world.trainer.kill()
        world.trainer.start()


@fault("the trainer is told to end (SIGTERM): it archives what it read, exits with 0")
def trainer_ended(world: World) -> None:
    process = world.trainer.process
    assert process is not None
    world.trainer.wait_for_log("leading")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0, world.trainer.log
    world.trainer.start()


@fault("the trainer stands still (SIGSTOP) while another one takes over, and wakes up")
def trainer_overtaken(world: World) -> None:
    old = world.trainer.process
    assert old is not None
    world.trainer.wait_for_log("leading")
    old.send_signal(signal.SIGSTOP)
    world.trainer.start()
    world.trainer.wait_for_log("leading")
    time.sleep(0.5)
    old.send_signal(signal.SIGCONT)
    assert old.wait(60) == 1


@fault("connections between callers and a server are reset", scoring=GONE, feedback=GONE)
def callers_cut(world: World) -> None:
    for _ in range(5):
        world.front.cut()
        time.sleep(0.2)


@fault("the line between callers and a server swallows everything for 1.5 s", scoring=_KILLED, feedback=_KILLED)
def callers_swallowed(world: World) -> None:
    world.callers.timeout_s = 1.0
    world.front.toxic = Toxic(swallow=True)
    time.sleep(1.5)
    world.front.heal()
    world.callers.timeout_s = 20.0


@fault("a server's clock is a day slow, another's a day fast")
def wrong_clocks(world: World) -> None:
    faketime = tool("faketime", "faketime")
    for shift in ("-1d", "+1d"):
        server = _ShiftedServer(world.directory / "models", world.plain.redis_url, world.directory / "shifted.log")
        server.prefix = [faketime, "--exclude-monotonic", "-f", shift]
        server.start()
        try:
            server.wait_until_serving()
            with RewardloopClient(server.address, timeout_s=60) as client:
                group = client.score("alpha", ["beta", "gamma"])
                assert abs(group.scores[0].logit - expected_logit("alpha", "beta")) < 1e-3
                event_id = f"clock{shift}"
                event = Feedback.choice(
                    prompt="alpha", responses=["beta", "gamma"], chosen=1, rejected=0, event_id=event_id
                )
                client.record(event)
                world.callers.acknowledged.append(event_id)
        finally:
            server.kill()


class _ShiftedServer(ServeProcess):
    prefix: list[str]

    def argv(self) -> list[str]:
        return [*self.prefix, *super().argv()]


@fault("the trainer's clock is a year fast")
def trainer_clock(world: World) -> None:
    faketime = tool("faketime", "faketime")
    world.trainer.kill()
    plain = world.trainer.argv
    world.trainer.argv = [faketime, "--exclude-monotonic", "-f", "+365d", *plain]
    world.trainer.start()
    world.trainer.wait_for_log("leading")
    time.sleep(1.0)
    world.trainer.kill()
    world.trainer.argv = plain
    world.trainer.start()
