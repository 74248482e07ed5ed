"""What somebody says on the page Label is in the ledger: over real gRPC, a real Redis and the trainer's reader."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import redis as blocking
from redis.asyncio import Redis
from support.consoles import console
from support.grpc_servers import serving
from support.labelling_desks import desk_on

from rewardloop.v1 import access_pb2_grpc, labelling_pb2_grpc
from rewardloop_client import AsyncRewardloopClient, NewTask
from rewardloop_local.ports import free_port
from rewardloop_server.doors.identity import AccessServicer
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_trainer.archive.consume import Consumer, ConsumerSettings
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.archive.ledger_columns import Recorded
from rewardloop_trainer.metrics import TrainerMetrics

PART = {"x-part": "true"}
PAIRS = 20
PATIENCE_S = 30.0


async def test_twenty_pairs_with_their_order_and_guidelines_and_not_what_was_taken_back(
    redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    metrics = ServerMetrics()
    desk, _ = desk_on(redis, metrics)
    address = f"127.0.0.1:{free_port()}"
    services = (
        (labelling_pb2_grpc.add_LabellingServiceServicer_to_server, desk.servicer),
        (access_pb2_grpc.add_AccessServiceServicer_to_server, AccessServicer()),
    )
    async with serving(metrics, *services, address=address), AsyncRewardloopClient(address) as client:
        tasks = [NewTask(("choice",), f"p{i}", (f"first {i}", f"second {i}")) for i in range(PAIRS + 1)]
        await client.labelling.add_tasks("shop", tasks, import_id="i")
        version = await client.labelling.set_guidelines("shop", "# Be true")
        async with console(client) as browser:
            page = (await browser.get("/console/label/shop")).text
            for _ in range(PAIRS + 1):
                fields = {"lease": _value(page, "data-lease"), "guideline_version": version, "verdict": "choice:1"}
                page = (await browser.post("/console/label/shop/answer", fields, **PART)).text
            assert "All done" in page
            back = await browser.post("/console/label/shop/undo", **PART)
            assert "Taken back." in back.text
        answers = [each async for each in client.labelling.answers("shop")]
    rows = await asyncio.to_thread(_archived, redis_url, tmp_path / "ledger")
    events = {row.event.prompt.text: row.event for row in rows}
    assert len(rows) == len(events) == len(answers) == PAIRS
    for given in answers:
        event = events[given.prompt.text]
        assert list(event.display_order) == list(given.display_order)
        assert event.choice.chosen == given.display_order[1]
        assert event.guideline_version == version
        assert event.annotator_id == given.labeller
    assert len({tuple(event.display_order) for event in events.values()}) == 2


def _value(page: str, attribute: str) -> str:
    return page.partition(f'{attribute}="')[2].partition('"')[0]


def _archived(redis_url: str, directory: Path) -> list[Recorded]:
    """The rows of the ledger, once the trainer's reader has taken every signal and what was taken back."""
    with blocking.Redis.from_url(redis_url, socket_timeout=30) as client:
        settings = ConsumerSettings(flush_age_s=0.05, block_ms=20, maintain_every_s=0.1)
        consumer = Consumer(client, Ledger(directory), TrainerMetrics(), settings)
        stop = threading.Event()
        thread = threading.Thread(target=consumer.run, args=(stop,))
        thread.start()
        rows: list[Recorded] = []
        for _ in range(int(PATIENCE_S / 0.1)):
            rows = list(Ledger(directory, writable=False).scan())
            if len(rows) == PAIRS:
                break
            stop.wait(0.1)
        stop.set()
        thread.join(PATIENCE_S)
    return rows
