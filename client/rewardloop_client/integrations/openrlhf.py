"""The address for OpenRLHF's ``--reward.remote_url``: the HTTP door answers as OpenRLHF's own reward server does.

Earlier releases of OpenRLHF call the option ``--remote_rm_url``.

OpenRLHF sends no token. So the door must be one that needs none, such as that of a deployment on the same machine
without callers.
"""

from __future__ import annotations


def remote_rm_url(door: str = "http://127.0.0.1:50080") -> str:
    """Return the value of ``--reward.remote_url`` for the HTTP door at an address. Raises ValueError for no address."""
    if not door.startswith(("http://", "https://")):
        raise ValueError(f"{door!r} is no address of HTTP, such as http://127.0.0.1:50080")
    return f"{door.rstrip('/')}/get_reward"
