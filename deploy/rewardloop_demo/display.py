"""The demo's live terminal: the present phase, the progress, and the table of rounds so far."""

from __future__ import annotations

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from rewardloop_demo import report
from rewardloop_demo.record import DemoRecord
from rewardloop_demo.settings import DemoSettings


class Display:
    """Shows the demo while `live` is entered, and takes it away afterwards. Without a terminal it prints the phases."""

    def __init__(self, settings: DemoSettings) -> None:
        columns = (TextColumn("{task.description:<22}"), BarColumn(), TextColumn("{task.fields[state]}"))
        self._progress = Progress(*columns, TimeElapsedColumn())
        self._phase = self._progress.add_task("now", total=None, state="starting")
        self._reward = self._progress.add_task("reward versions", total=settings.reward_rounds, state="")
        self._policy = self._progress.add_task("policy versions", total=settings.policy_rounds, state="")
        self.live = Live(self._progress, console=console(), refresh_per_second=4, transient=True)

    def say(self, phase: str) -> None:
        """Show what the demo does from now on."""
        self._progress.update(self._phase, state=phase)
        if not self.live.console.is_terminal:
            self.live.console.print(phase)

    def show_signals(self, signals: int) -> None:
        """Show how many signals the server has acknowledged."""
        self._progress.update(self._reward, state=f"{signals:,} signals")

    def show(self, demo: DemoRecord) -> None:
        """Show the table with all rounds so far."""
        last = demo.rounds[-1]
        self._progress.update(self._reward, completed=last.reward_swaps)
        self._progress.update(self._policy, completed=last.policy_swaps, state=f"v{last.policy_version} live")
        self.live.update(Group(report.table(demo), self._progress))


def console() -> Console:
    """The terminal. If the output goes to a file, the console is wide enough for the table."""
    found = Console()
    return found if found.is_terminal else Console(width=120)
