"""The command `feedback retract`: takes imports back."""

from __future__ import annotations

from collections.abc import Sequence

from rewardloop_cli.connect import open_client


def run(import_ids: Sequence[str], server: str) -> int:
    """Take imports back, and print the stream id of each retraction. Raises RewardloopError."""
    with open_client(server, timeout_s=30.0) as client:
        for import_id in import_ids:
            place = client.retract(import_id)
            print(
                f"import {import_id}: taken back (stream id {place}). The trainer takes its signals out of the "
                "ledger when it has read up to that id; import the file again only after that.",
                flush=True,
            )
    return 0
