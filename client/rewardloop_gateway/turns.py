"""Bounds the requests that are in work. One takes a place when its body has come, and none while its client reads.

So a client that is slow to send or to read takes no place of others. It has only its connection, which has bounds of
its own.
"""

from __future__ import annotations

from starlette.exceptions import HTTPException

from rewardloop_console.headers import Message, Receive, Send

RETRY_S = 1.0
FULL = "too many requests are in work (--max-requests)"


class Places:
    """Counts the requests in work. One event loop uses it.

    Attributes:
        most: Most of them.
        taken: How many there are. It passes `most` for a while if clients that had stopped to read go on.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken = 0


class Turn:
    """One request. Its `receive` and `send` take the place of the server's."""

    def __init__(self, places: Places, receive: Receive, send: Send) -> None:
        self._places = places
        self._receive = receive
        self._send = send
        self._has_place = False

    def begin(self) -> bool:
        """Take a place, and return whether there was one."""
        if not self._has_place and self._places.taken < self._places.most:
            self._has_place = True
            self._places.taken += 1
        return self._has_place

    def end(self) -> None:
        """Give the place back, if it was taken."""
        self._places.taken -= self._has_place
        self._has_place = False

    async def receive(self) -> Message:
        """Return the next message. Raises HTTPException if the body has come and there is no place for the request."""
        message = await self._receive()
        is_whole = message["type"] == "http.request" and not message.get("more_body", False)
        if is_whole and not self.begin():
            raise HTTPException(503, FULL, {"retry-after": f"{RETRY_S:.0f}"})  # FastAPI turns others into 400
        return message

    async def send(self, message: Message) -> None:
        """Send a message. While the client does not read, the place is others'."""
        self._places.taken -= self._has_place
        try:
            await self._send(message)
        finally:
            self._places.taken += self._has_place
