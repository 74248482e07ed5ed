"""How many event_ids are remembered. Settings import it, so it imports nothing."""

from __future__ import annotations

from typing import Final

# Ids are remembered in three windows, while a fourth one is deleted.
WINDOWS: Final = 4
# 30 days at 9 signals a second, with room for the window that is half over.
MOST_IDS: Final = 30_000_000
# At most so many on average are in a bucket of a full window, because Redis keeps a bucket of up to 512 fields in its
# compact form (hash-max-listpack-entries).
_IDS_OF_A_BUCKET, _BUCKETS = 400, 65_536
# A dropped window's bucket is deleted when the bucket of its name is begun, so a full window must reach nearly all.
LEAST_OF_MOST_IDS: Final = WINDOWS * _BUCKETS * 8
MOST_OF_MOST_IDS: Final = WINDOWS * _BUCKETS * _IDS_OF_A_BUCKET
