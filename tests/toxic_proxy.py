"""A TCP proxy on loopback that can be slow, reset connections, or fall silent."""

import contextlib
import socket
import struct
import threading
import time
from typing import Self

_CHUNK = 64 << 10


class ToxicProxy:
    """Passes on what comes, as `poison` says. Set `target`, the port behind, before the first connection."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.target: int | None = None
        self._delay_s, self._reset_every_s, self._silent = 0.0, None, False
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self._closing = threading.Event()
        for work in (self._accept, self._reset):
            threading.Thread(target=work, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._listener.close()
        self._reset_all()

    def poison(self, *, delay_s: float = 0.0, reset_every_s: float | None = None, silent: bool = False) -> None:
        """Delay every chunk, reset all connections now and then, or pass on nothing (and reset all when that ends)."""
        was_silent = self._silent
        self._delay_s, self._reset_every_s, self._silent = delay_s, reset_every_s, silent
        if was_silent and not silent:
            self._reset_all()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self.target), timeout=5.0)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            with self._lock:
                self._pairs.append((client, server))
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK):
                time.sleep(self._delay_s)
                while self._silent and not self._closing.is_set():
                    time.sleep(0.05)
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _reset(self) -> None:
        while not self._closing.wait(self._reset_every_s or 0.2):
            if self._reset_every_s is not None:
                self._reset_all()

    def _reset_all(self) -> None:
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):  # closed by its other half
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    end.shutdown(socket.SHUT_RDWR)
                end.close()
