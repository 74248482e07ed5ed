"""The reports that were published into a store: ``<store>/.reports/<report_id>.json``, and its page beside it.

A report's name begins with the time at which it was published. The page is compressed HTML. It is written first, so
that a report that is listed is whole. The newest 50 are kept.
"""

from __future__ import annotations

import gzip
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias, get_args

ReportKind: TypeAlias = Literal["evaluation", "audit", "checks"]

KEPT = 50
MOST_PAGE_BYTES = 16 * 2**20
_KINDS = get_args(ReportKind)
FOLDER = ".reports"
_ID = re.compile(r"\d{8}T\d{6}\.\d{3}Z-[a-z]+-[0-9a-f]{8}")


class ReportError(Exception):
    """Raised when a report cannot be published, listed or read."""


class NoReport(ReportError):
    """Raised when there is no report of this id."""


@dataclass(frozen=True, slots=True)
class About:
    """What a list says of a report.

    Attributes:
        report_id: Its id.
        kind: What made it.
        title: What it is about, in one line.
        lead: What it found, in a sentence or two.
        time: When it was published, in Unix seconds.
        figures: Figures by name, all finite.
    """

    report_id: str
    kind: ReportKind
    title: str
    lead: str
    time: float
    figures: Mapping[str, float] = field(default_factory=dict)


class ReportShelf:
    """Publishes, lists and reads the reports of one store.

    Args:
        filesystem: The store's fsspec file system.
        root: The store's path in it.
    """

    def __init__(self, filesystem: Any, root: str) -> None:
        self._fs = filesystem
        self._folder = f"{root}/{FOLDER}"

    def publish(self, kind: ReportKind, title: str, lead: str, figures: Mapping[str, float], page: str) -> str:
        """Publish a report and drop the oldest beyond the bound. Returns its id.

        Raises:
            ReportError: The page is too large, or the store cannot be written.
        """
        data = page.encode("utf-8", "backslashreplace")
        if len(data) > MOST_PAGE_BYTES:
            raise ReportError(f"the page has {len(data):,} bytes, more than {MOST_PAGE_BYTES:,}")
        now = datetime.now(UTC)
        stamp = now.strftime("%Y%m%dT%H%M%S.") + f"{now.microsecond // 1000:03}Z"
        report_id = f"{stamp}-{kind}-{secrets.token_hex(4)}"
        about = About(report_id, kind, title, lead, now.timestamp(), dict(figures))
        try:
            self._fs.makedirs(self._folder, exist_ok=True)
            self._fs.pipe_file(self._page(report_id), gzip.compress(data, mtime=0))
            self._fs.pipe_file(self._about(report_id), json.dumps(asdict(about)).encode())
            for old in self._ids()[KEPT:]:
                self._fs.rm_file(self._about(old))
                self._fs.rm_file(self._page(old))
        except Exception as error:  # each file system has exceptions of its own
            raise ReportError(f"{self._folder} cannot be written: {error}") from error
        return report_id

    def clear(self) -> int:
        """Delete every report, and return how many. Raises ReportError."""
        try:
            ids = self._ids()
            for report_id in ids:
                self._fs.rm_file(self._about(report_id))
                self._fs.rm_file(self._page(report_id))
        except Exception as error:  # as above
            raise ReportError(f"{self._folder} cannot be written: {error}") from error
        return len(ids)

    def newest(self, count: int = KEPT) -> list[About]:
        """Return the reports, newest first. One that cannot be read is left out. Raises ReportError."""
        try:
            ids = self._ids()[:count]
        except Exception as error:  # as above
            raise ReportError(f"{self._folder} cannot be read: {error}") from error
        found = []
        for report_id in ids:
            try:
                found.append(self._read_about(report_id))
            except NoReport:  # dropped meanwhile, or damaged
                continue
        return found

    def read(self, report_id: str) -> tuple[About, str]:
        """Return a report and its page. Raises NoReport and ReportError."""
        about = self._read_about(report_id)
        try:
            with gzip.open(self._fs.open(self._page(report_id), "rb")) as file:
                data = file.read(MOST_PAGE_BYTES + 1)
        except (FileNotFoundError, EOFError, gzip.BadGzipFile) as error:
            raise NoReport(f"report {report_id} has no readable page") from error
        except Exception as error:  # as above
            raise ReportError(f"{self._page(report_id)} cannot be read: {error}") from error
        return about, data[:MOST_PAGE_BYTES].decode("utf-8", "replace")

    def _read_about(self, report_id: str) -> About:
        if not _ID.fullmatch(report_id):
            raise NoReport("this is no id of a report")
        try:
            raw = json.loads(self._fs.cat_file(self._about(report_id)))
            about = About(**raw)
            if about.kind not in _KINDS or about.report_id != report_id:
                raise ValueError("another report")
            return about
        except (FileNotFoundError, ValueError, TypeError) as error:
            raise NoReport(f"there is no readable report {report_id}") from error
        except Exception as error:  # as above
            raise ReportError(f"{self._about(report_id)} cannot be read: {error}") from error

    def _ids(self) -> list[str]:
        self._fs.invalidate_cache()
        try:
            names = [str(entry).rsplit("/", 1)[-1] for entry in self._fs.ls(self._folder, detail=False)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        found = (name.removesuffix(".json") for name in names if name.endswith(".json"))
        return sorted((each for each in found if _ID.fullmatch(each)), reverse=True)

    def _about(self, report_id: str) -> str:
        return f"{self._folder}/{report_id}.json"

    def _page(self, report_id: str) -> str:
        return f"{self._folder}/{report_id}.html.gz"
