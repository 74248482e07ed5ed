"""``rewardloop feedback export``: writes signals of the ledger as rows that other programs read.

Exit status: 0 if every signal that was asked for is written, 1 if some were left out, 2 if nothing could be written.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from rewardloop.process.settings import parse
from rewardloop_trainer.commands.feedback_export.settings import FeedbackExportSettings

_PROG = "rewardloop feedback export"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the signals that the flags name. Returns the exit status."""
    settings = parse(FeedbackExportSettings, sys.argv[1:] if argv is None else argv, _PROG)
    # Imported here, so that --help does not load pyarrow.
    from rewardloop_data.target_file import STANDARD_OUTPUT, UnwritableFile
    from rewardloop_trainer.archive.ledger import CorruptSegment, NoLedger
    from rewardloop_trainer.commands.feedback_export.export import export

    try:
        summary = export(settings)
    except (UnwritableFile, NoLedger, CorruptSegment, OSError) as error:
        print(f"{_PROG}: {error}", file=sys.stderr)
        return 2
    if settings.json_output:
        text = json.dumps(asdict(summary), indent=2, ensure_ascii=False)
    else:
        text = "\n".join(summary.lines(settings.out, dry_run=settings.dry_run))
    is_apart = settings.out != STANDARD_OUTPUT or settings.dry_run  # rows and summary do not share standard output
    print(text, file=sys.stdout if is_apart else sys.stderr)
    return 1 if summary.left_out else 0


if __name__ == "__main__":
    raise SystemExit(main())
