"""``rewardloop off-policy``: what people would give a policy's answers, estimated from their judgements of others.

Exit status: 0 if there is an estimate, 1 if there is none, 2 if the flags are not valid.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rewardloop.process.settings import parse
from rewardloop_trainer.commands.off_policy.settings import OffPolicySettings


def main(argv: Sequence[str] | None = None) -> int:
    """Estimate the policy that the flags name and print the result. Returns the exit status."""
    settings = parse(OffPolicySettings, sys.argv[1:] if argv is None else argv, "rewardloop off-policy")
    if [bool(settings.version), bool(settings.base), bool(settings.bandit)].count(True) != 1:
        print("rewardloop off-policy: name what to estimate: --version, --base, or --bandit", file=sys.stderr)
        return 2
    if settings.bandit and settings.server:
        print("rewardloop off-policy: a bandit has a value model of its own: leave out --server", file=sys.stderr)
        return 2
    # Imported here, so that --help does not load torch.
    from rewardloop.formats.signatures import UnusableKey
    from rewardloop.formats.store import StoreError
    from rewardloop.process.log import configure_logging
    from rewardloop_client import RewardloopError
    from rewardloop_trainer.commands.off_policy.run import estimate, show
    from rewardloop_trainer.data.base_text import UnusableBase

    configure_logging(settings.log_level, settings.log_format)
    try:
        report = estimate(settings)
    except (RewardloopError, StoreError, UnusableBase, UnusableKey, ValueError, OSError) as error:
        print(f"rewardloop off-policy: {error}", file=sys.stderr)
        return 1
    show(report, settings.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
