"""`Acceptor`: takes the connections of a listening socket, many that wait in one turn of the loop.

An event loop of libuv takes one in each of its turns. Where the tokens of many streams make a turn
long, newcomers then stand in line in the kernel, for seconds if there are many, before anybody can
so much as tell them that there is no room.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable

log = logging.getLogger(__name__)
# In one turn: a flood does not keep the streams waiting, and those that are to be refused, some
# turns later, fit into the files that `listener` keeps back.
_AT_ONCE = 16
_PAUSE_SECONDS = 0.1
_EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


class Acceptor:
    """Begins with its making. Use it from one event loop."""

    def __init__(
        self, listener: socket.socket, protocol: Callable[[], asyncio.BaseProtocol]
    ) -> None:
        """`listener` remains the caller's, to be closed after this one; `protocol` makes what a new
        connection talks to."""
        listener.setblocking(False)
        self._listener = listener
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._listen()

    def close(self) -> None:
        """Nobody is taken any more; who has been taken stays."""
        self._loop.remove_reader(self._listener)
        if self._pause is not None:
            self._pause.cancel()

    async def wait_closed(self) -> None:
        """Returns when all who were taken have got what they talk to."""
        await asyncio.gather(*self._opening)

    def _listen(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:  # the client has left the line
                continue
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                # They wait in the kernel until others have gone; the loop would look all the time.
                log.warning("no connection can be taken: %s", error.strerror)
                self._loop.remove_reader(self._listener)
                self._pause = self._loop.call_later(_PAUSE_SECONDS, self._listen)
                return
            opening = self._loop.create_task(self._open(connection))
            self._opening.add(opening)
            opening.add_done_callback(self._opening.discard)

    async def _open(self, connection: socket.socket) -> None:
        try:
            connection.setblocking(False)
            await self._loop.connect_accepted_socket(self._protocol, connection)
        except OSError as error:  # it was reset before it was ours
            log.debug("a connection was lost at once: %s", error)
            connection.close()
