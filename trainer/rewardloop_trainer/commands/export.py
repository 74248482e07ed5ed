"""``rewardloop export``: makes a version in the store of any Hugging Face base.

Exit status: 0 if the version was published, 1 if it was not, 2 if the flags are not valid.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rewardloop.process.settings import parse
from rewardloop_trainer.commands.export_settings import ExportSettings
from rewardloop_trainer.commands.progress import FileProgress


def main(argv: Sequence[str]) -> int:
    """Export the base that the flags name and print the new version. Returns the exit status."""
    options = parse(ExportSettings, argv, "rewardloop export")
    # Imported here, so that --help does not load torch.
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    from rewardloop.formats.mixing.names import POLICY
    from rewardloop.formats.signatures import UnusableKey
    from rewardloop.formats.store import StoreError
    from rewardloop.formats.text import RefusedConversation
    from rewardloop_trainer.commands.export_onnx import export_own_graph
    from rewardloop_trainer.commands.export_policy import export_policy_base
    from rewardloop_trainer.commands.export_reward import export_reward_base
    from rewardloop_trainer.commands.export_served import export_served_elsewhere
    from rewardloop_trainer.data.base_path import check_base
    from rewardloop_trainer.data.base_text import UnusableBase
    from rewardloop_trainer.data.files.gate_pairs import CorruptPairs
    from rewardloop_trainer.export.errors import ExportFailed, ParityError, UnusableGraph
    from rewardloop_trainer.reward.adapter_base import merged_base
    from rewardloop_trainer.reward.anchors import UnusableAnchors

    disable_progress_bar()  # type: ignore[no-untyped-call]
    set_verbosity_error()  # type: ignore[no-untyped-call]  # the export judges what it loads, and says it itself
    try:
        check_base(options.base, lambda line: print(f"rewardloop export: {line}", file=sys.stderr, flush=True))
        with FileProgress("rewardloop export") as progress:
            if options.onnx is not None:
                manifest = export_own_graph(options, progress)
            elif options.served_as:
                with merged_base(options.base) as base:
                    manifest = export_served_elsewhere(options, base, progress)
            elif options.model == POLICY:
                manifest = export_policy_base(options, progress)
            else:
                with merged_base(options.base) as base:
                    manifest = export_reward_base(options, base, progress)
    except (
        UnusableBase,
        ParityError,
        ExportFailed,
        UnusableGraph,
        UnusableAnchors,
        CorruptPairs,
        RefusedConversation,
        StoreError,
        UnusableKey,
        OSError,
    ) as error:
        # Transformers' own messages have several lines.
        print(f"rewardloop export: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(f"{manifest.model} {manifest.version}  {manifest.digest[:12]}", flush=True)
    if manifest.version != "1":
        promote = f"rewardloop models promote {manifest.model} {manifest.version}"
        print(f"rewardloop export: '{promote}' makes it live", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
