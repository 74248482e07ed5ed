"""Lets the simulated users use the deployment while its trainer learns, and records every version that goes live."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from rewardloop_client import AsyncRewardloopClient
from rewardloop_demo.display import Display
from rewardloop_demo.learning import thumb_share
from rewardloop_demo.observer import Observer
from rewardloop_demo.record import DemoRecord, RoundRecord
from rewardloop_demo.settings import DemoSettings
from rewardloop_demo.taste import Taste
from rewardloop_demo.trainer_notes import TrainerNotes
from rewardloop_demo.users import SimulatedUsers
from rewardloop_local import corpus

_LOOK_EVERY_S = 0.3
# How many policies that go live one after another are measured after the users have stopped.
_MOST_LAST = 3


async def watch_rounds(
    client: AsyncRewardloopClient,
    settings: DemoSettings,
    notes: TrainerNotes,
    display: Display,
    stop: asyncio.Event,
    started: float,
) -> DemoRecord:
    """Run until enough versions have gone live, the time is up, or ``stop`` is set.

    Args:
        client: Connected to the running deployment.
        settings: How many versions are enough, and how long it may take.
        notes: Reads what the trainer notes of rounds that led to no version.
        display: Shows the progress.
        stop: Set when the user wants to end the demo.
        started: Start of the demo on the monotonic clock, in seconds.
    """
    taste = Taste(settings.seed)
    held_out = [q.text for q in corpus.questions(settings.seed, held_out=True)][: settings.eval_prompts]
    observer = Observer(client, taste, held_out, settings.seed)
    display.say("asking the starter policy the held-out questions")
    await observer.begin()
    demo = await _first_record(observer, settings, len(held_out), started)
    display.show(demo)
    display.say("users ask, read and choose; the trainer learns")
    users = SimulatedUsers(
        client,
        taste,
        [q.text for q in corpus.questions(settings.seed)],
        rate=settings.rate,
        thumb_share=thumb_share(settings.algorithm),
        seed=settings.seed,
    )
    using = asyncio.create_task(users.run())
    try:
        while not stop.is_set() and time.monotonic() - started < settings.minutes * 60:
            await asyncio.sleep(_LOOK_EVERY_S)
            if using.done():
                using.result()  # raises what ended the users
            display.show_signals(users.total)
            if notes.look(time.monotonic() - started, users.total):
                demo = replace(demo, fruitless=tuple(notes.fruitless))
                display.show(demo)
            demo = await _look(demo, observer, users, display, started)
            last = demo.rounds[-1]
            if last.policy_swaps >= settings.policy_rounds and last.reward_swaps >= settings.reward_rounds:
                break
    finally:
        using.cancel()
        await asyncio.gather(using, return_exceptions=True)
    demo = replace(demo, signal_kinds=dict(users.recorded), failed_requests=users.refused)
    if demo.rounds[-1].policy_swaps and not stop.is_set():
        display.say("asking the last policy all held-out questions")
        demo = await _measure_end(demo, observer, users, display, started)
        demo = replace(demo, judge=notes.judge(await observer.policy_metrics()))
    display.say("fitting a bag of words to the same choices")
    baseline = await asyncio.to_thread(observer.bag_of_words_accuracy, users.comparisons)
    return replace(demo, bag_of_words_accuracy=baseline)


async def _look(
    demo: DemoRecord, observer: Observer, users: SimulatedUsers, display: Display, started: float
) -> DemoRecord:
    """Measure and show what went live since the last look, if anything did."""
    measured = await observer.measure(demo.rounds[-1])
    if measured is None:
        return demo
    measured = replace(measured, seconds=time.monotonic() - started, signals=users.total)
    demo = replace(demo, rounds=(*demo.rounds, measured), signal_kinds=dict(users.recorded), seconds=measured.seconds)
    display.show(demo)
    return demo


async def _measure_end(
    demo: DemoRecord, observer: Observer, users: SimulatedUsers, display: Display, started: float
) -> DemoRecord:
    """Measure the last policy on all held-out questions. The trainer may still promote others meanwhile."""
    for _ in range(_MOST_LAST):
        demo = await _look(demo, observer, users, display, started)
        rounds = list(demo.rounds)
        first = next(i for i, each in enumerate(rounds) if each.policy_swaps == rounds[-1].policy_swaps)
        if (measured := await observer.measure_last(rounds[first])) is not None:
            rounds[first] = measured
            return replace(demo, rounds=tuple(rounds))
    return demo


async def _first_record(
    observer: Observer, settings: DemoSettings, held_out_prompts: int, started: float
) -> DemoRecord:
    """The record before anything is learned: the starter against itself."""
    accuracy, _ = await observer.reward_accuracy()
    start = RoundRecord(
        round=0,
        seconds=time.monotonic() - started,
        signals=0,
        reward_version="1",
        reward_accuracy=accuracy.mean,
        reward_low=accuracy.low,
        reward_high=accuracy.high,
        policy_version="1",
        win_rate=0.5,
        win_low=0.5,
        win_high=0.5,
    )
    return DemoRecord(
        algorithm=settings.algorithm,
        seed=settings.seed,
        rounds=(start,),
        starter_accuracy=accuracy.mean,
        accuracy_ceiling=observer.ceiling,
        held_out_pairs=len(observer.choices),
        held_out_prompts=held_out_prompts,
        signal_kinds={},
        seconds=0.0,
    )
