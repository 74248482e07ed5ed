"""Ends the commands that train one model by hand: messages, exit status, and the version in the store."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from rewardloop.formats.signatures import signer
from rewardloop.formats.store import Manifest, ModelStore
from rewardloop_trainer.rounds.publish import publish_once


class Unpublishable(Exception):
    """Raised when a model that its gate lets pass cannot be published. The text says why."""


class Publishing(Protocol):
    """The settings of a command that say where a version goes."""

    @property
    def publish(self) -> bool:
        """Whether to publish."""

    @property
    def store(self) -> str:
        """The model store."""

    @property
    def signing_key(self) -> str:
        """The file of the key that signs the version; "" for none."""


def finish(
    command: str,
    work: Callable[[], int],
    known: tuple[type[Exception], ...],
    told: Callable[[Exception], str] = str,
) -> int:
    """Run a command's work, and say in its name why it did not end well.

    Args:
        command: The command's name.
        work: Does everything, and returns the exit status.
        known: The exceptions by which the work fails, beside ValueError, ArithmeticError and OSError. All others are
            raised.
        told: What to say of one.

    Returns:
        The exit status of the work, 2 if it failed, and 130 after an interrupt.
    """
    expected: tuple[type[Exception], ...] = (*known, ValueError, ArithmeticError, OSError)
    try:
        return work()
    except expected as error:
        _say(command, told(error))
        return 2
    except KeyboardInterrupt:
        _say(command, "interrupted; the same command goes on from the last checkpoint, or starts over if there is none")
        return 130


def conclude(
    settings: Publishing, run_id: str, files: Path, reasons: Sequence[str], manifest: Callable[[], Manifest]
) -> int:
    """Print what the gate has against a version, and publish it if that is wanted and nothing speaks against it.

    Args:
        settings: Whether and where to publish.
        run_id: Identifies the run: the same one publishes once.
        files: The directory with the version's files.
        reasons: Why the gate would refuse it; none if it passes.
        manifest: Makes the manifest, if the version is published.

    Returns:
        The exit status: 1 if it was to be published and was not.

    Raises:
        StoreError: If the store cannot be written.
    """
    for reason in reasons:
        print(f"the gate would refuse it: {reason}", flush=True)
    if not settings.publish:
        return 0
    if reasons:
        print("not published", file=sys.stderr, flush=True)
        return 1
    try:
        about = manifest()
    except Unpublishable as error:
        print(f"not published: {error}", file=sys.stderr, flush=True)
        return 1

    def write(directory: Path) -> None:
        shutil.copytree(files, directory, dirs_exist_ok=True)

    store = ModelStore(settings.store, signer=signer(settings.signing_key))
    published = publish_once(store, about, write, f"by-hand-{run_id[:16]}")
    name = f"{about.model} {published.version}"
    print(f"{name} published: `rewardloop models promote {name}` serves it", flush=True)
    return 0


def _say(command: str, message: str) -> None:
    for line in message.splitlines():
        print(f"{command}: {line}", file=sys.stderr, flush=True)
