"""A TCP proxy that can be cut, silenced and slowed down."""

import contextlib
import socket
import struct
import threading
import time
from typing import Self

HOST = "127.0.0.1"
_BLOCK = 1 << 16
_LOOK_SECONDS = 0.05


class TcpProxy:
    """Forwards connections to one server until it is told otherwise; one thread for each direction of each connection.

    Args:
        target: port of the server, on this machine.
        port: to listen on; 0: a free one.
    """

    def __init__(self, target: int, port: int = 0) -> None:
        self._target = target
        self._listener = socket.create_server((HOST, port))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._cut = threading.Event()
        self._closed = threading.Event()
        self._flows = threading.Event()
        self._flows.set()
        self._delay_seconds = 0.0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Resets all connections, and every new one."""
        self._cut.set()
        self._reset()

    def silence(self) -> None:
        """Keeps the connections and lets nothing pass, as if packets were lost."""
        self._flows.clear()

    def slow(self, seconds: float) -> None:
        """Holds every block of bytes for so long."""
        self._delay_seconds = seconds

    def heal(self) -> None:
        """Ends all of that."""
        self._cut.clear()
        self._delay_seconds = 0.0
        self._flows.set()

    def close(self) -> None:
        """Ends the proxy and its connections."""
        self._closed.set()
        self._flows.set()
        self._listener.close()
        self._reset()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                if self._cut.is_set():
                    raise ConnectionRefusedError
                server = socket.create_connection((HOST, self._target), timeout=5)
                server.settimeout(None)
                for end in (client, server):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError:
                _abort(client)
                continue
            with self._lock:
                self._open |= {client, server}
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while block := source.recv(_BLOCK):
                while not self._flows.wait(_LOOK_SECONDS):
                    pass
                if self._delay_seconds:
                    time.sleep(self._delay_seconds)
                sink.sendall(block)
        except OSError:
            pass
        finally:
            with self._lock:
                self._open -= {source, sink}
            for end in (source, sink):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def _reset(self) -> None:
        with self._lock:
            ends, self._open = self._open, set()
        for end in ends:
            _abort(end)


def _abort(end: socket.socket) -> None:
    """Closes with a reset instead of a farewell."""
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError):
        end.close()
