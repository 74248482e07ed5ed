"""What a reward model keeps of what honest people taught it when others spam, lie or push a word.

    python tests/bench/crowds.py --seeds 0 1 2

The world is small and its truth is known: responses of words with hidden worths (`support/crowd_worlds.py`). Every
figure is a new reward model from a base of random weights. Its gain is its accuracy on the truth over one half; *kept*
is its gain as a share of an honest crowd's, and *of the honest* the same as a share of what the honest people of that
crowd teach alone, with nobody else's votes: no defence can be expected to give more. ``--noise 1`` makes votes right in
about 0.73 instead of 0.84. Without a defence every signal weighs the same, but for the cap of one
person, which training has in any case. Pairs are judged by three people each, and then by one, so that people are known
by a model that has not learned from them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import arguments as options
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.crowd_worlds import DEFENCES, NOISE, Crowd, World, learned

CROWDS: dict[str, dict[str, float]] = {
    "honest": {},
    "20% spam": {"spammers": 0.2},
    "40% spam": {"spammers": 0.4},
    "10% lie": {"liars": 0.1},
    "20% lie": {"liars": 0.2},
}


def kept(seed: int, pairs: int, votes: int, asked: argparse.Namespace, work: Path) -> None:
    """Print a line for each crowd and defence."""
    world = World(seed, pairs, noise=asked.noise)
    honest = world.judged(Crowd(votes=votes))
    best = world.accuracy(*learned(world, DEFENCES["none"](world, honest, work), work, asked.epochs)) - 0.5
    right = np.mean([e.choice.chosen == int(world.value(e.responses[1]) > world.value(e.responses[0])) for e in honest])
    print(f"| {votes} | {seed} | honest, right in {right:.2f} | none | {best + 0.5:.3f} | 1.00 | 1.00 |", flush=True)
    names = [name for name in DEFENCES if votes > 1 or name != "majority vote"]
    for crowd in asked.crowds:
        said = Crowd(votes=votes, **CROWDS[crowd])
        events, alone = world.judged(said), best
        if crowd != "honest":
            records = DEFENCES["none"](world, world.honest_alone(said), work)
            alone = world.accuracy(*learned(world, records, work, asked.epochs)) - 0.5
            print(f"| {votes} | {seed} | {crowd} | its honest alone | {alone + 0.5:.3f} | {alone / best:.2f} | 1.00 |")
        for name in names if crowd != "honest" else ["trust"]:
            gain = world.accuracy(*learned(world, DEFENCES[name](world, events, work), work, asked.epochs)) - 0.5
            shares = f"{gain / best:.2f} | {gain / alone:.2f}"
            print(f"| {votes} | {seed} | {crowd} | {name} | {gain + 0.5:.3f} | {shares} |", flush=True)


def pushed(seed: int, asked: argparse.Namespace, work: Path) -> None:
    """Print how far a word is moved by 1% of the signals, by how many ids they come from."""
    world, epochs = World(seed, asked.pairs, noise=asked.noise), asked.epochs
    honest = world.judged(Crowd())
    before = world.entity_effect(*learned(world, DEFENCES["none"](world, honest, work), work, epochs))
    for ids in asked.ids:
        events = world.judged(Crowd(pushers=ids))
        moved = {
            name: world.entity_effect(*learned(world, DEFENCES[name](world, events, work), work, epochs)) - before
            for name in ("none", "trust")
        }
        print(f"| {seed} | {ids} | {moved['none']:+.3f} | {moved['trust']:+.3f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of the worlds, the crowds and the models")
    parser.add_argument("--pairs", type=int, default=800, help="pairs that are judged by three people each")
    parser.add_argument("--noise", type=float, default=NOISE, help="of people's votes, in the spread of the responses")
    parser.add_argument("--epochs", type=int, default=0, help="passes of the trunk; 0: the linear start alone learns")
    parser.add_argument("--crowds", nargs="+", choices=list(CROWDS), default=list(CROWDS), help="who takes part")
    parser.add_argument("--votes", nargs="+", type=int, default=[3, 1], help="people who judge each pair")
    parser.add_argument("--ids", nargs="*", type=int, default=[1, 6, 12], help="ids by which a word is pushed")
    parser.add_argument("--work", type=Path, default=None, help="where bases are kept (default: temporary)")
    asked = parser.parse_args()
    with options.work_directory(asked.work) as work:
        print("| votes on a pair | seed | crowd | defence | accuracy | kept | of the honest |\n|" + 7 * " --- |")
        for votes in asked.votes:
            for seed in asked.seeds:
                kept(seed, 3 * asked.pairs // votes, votes, asked, work)
        if asked.ids:
            print("\n| seed | ids | moved without a defence | with trust |\n| --- | --- | --- | --- |")
        for seed in asked.seeds if asked.ids else ():
            pushed(seed, asked, work)


if __name__ == "__main__":
    main()
