"""Draws the pictures of the console in deploy/README.md: ``python tests/console_pictures.py [FOLDER]``.

The pages are shown by a real Chromium over the client's fake.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from support.chromium import PHONE, chromium
from support.consoles import GuardedRewardloop, console_on_a_port
from support.loops import busy_fake

from rewardloop_client import NewTask
from rewardloop_client.fake import FakeRewardloop

FOLDER = Path(__file__).resolve().parents[1] / "deploy" / "console"
PAGES = ("watch", "compare", "decide", "people")
GUIDELINES = """# Which answer helps more?

1. It is **true**, and says so if it does not know.
2. It does what was asked, and no more.
3. It is short.

Do not prefer an answer because it is longer or more polite.
"""
QUESTION = "My router keeps losing its connection. How do I reset it?"
GOOD = (
    "Hold the **reset** button for ten seconds, until the light blinks.\n\n"
    "1. Wait two minutes.\n2. Open `http://192.168.0.1`.\n3. Enter the password on the label."
)
BAD = "Routers are complicated. You could try several things, or ask your provider, who surely knows more about it."


def with_tasks(kind: str) -> FakeRewardloop:
    """A fake with one project, whose tasks are of one kind."""
    fake = FakeRewardloop()
    candidates = (GOOD, BAD) if kind == "choice" else (GOOD, BAD, "No idea.")
    tasks = [NewTask(("ranking", "edit") if kind == "ranking" else ("choice",), QUESTION, candidates)]
    tasks += [NewTask(("choice",), f"Question {i}", ("a", "b")) for i in range(19)]
    fake.labelling.add_tasks("support", tasks, import_id="pictures")
    fake.labelling.set_guidelines("support", GUIDELINES)
    return fake


def main() -> int:
    """Write every picture. Returns the exit status."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with chromium() as browser:

        def draw(fake: FakeRewardloop, address: str, name: str, scheme: str = "light", **size: int) -> None:
            with console_on_a_port(fake) as url:
                page = browser.new_page(viewport=size or {"width": 1100, "height": 620}, color_scheme=scheme)
                page.goto(url + address)
                page.screenshot(path=folder / f"{name}.png")
                page.close()

        draw(GuardedRewardloop(), "/console/sign-in", "sign-in", width=700, height=360)
        draw(with_tasks("choice"), "/console/label/support", "label")
        draw(with_tasks("ranking"), "/console/label/support", "label-phone", "dark", **PHONE)
        for page in PAGES:
            draw(busy_fake(), f"/console/{page}", page)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
