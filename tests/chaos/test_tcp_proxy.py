import socket
import threading
from collections.abc import Iterator

import pytest

from tests.chaos.tcp_proxy import HOST, TcpProxy


@pytest.fixture
def echo() -> Iterator[int]:
    """A server that sends back what it gets; its port."""
    listener = socket.create_server((HOST, 0))

    def answer(client: socket.socket) -> None:
        with client:
            try:
                while block := client.recv(100):
                    client.sendall(block)
            except OSError:
                pass

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield listener.getsockname()[1]
    listener.close()


def _connect(proxy: TcpProxy) -> socket.socket:
    return socket.create_connection((HOST, proxy.port), timeout=5)


def test_it_forwards_both_ways(echo: int) -> None:
    with TcpProxy(echo) as proxy, _connect(proxy) as client:
        client.sendall(b"there and back")
        assert client.recv(100) == b"there and back"


def test_a_cut_ends_connections_and_new_ones_until_it_is_healed(echo: int) -> None:
    with TcpProxy(echo) as proxy:
        with _connect(proxy) as client:
            client.sendall(b"a")
            assert client.recv(100) == b"a"
            proxy.cut()
            assert _dead(client)
        assert _refused(proxy)
        proxy.heal()
        with _connect(proxy) as client:
            client.sendall(b"b")
            assert client.recv(100) == b"b"


def test_silence_keeps_connections_and_bytes(echo: int) -> None:
    with TcpProxy(echo) as proxy, _connect(proxy) as client:
        client.sendall(b"a")
        assert client.recv(100) == b"a"
        proxy.silence()
        client.sendall(b"b")
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(100)
        client.settimeout(5)
        proxy.heal()
        assert client.recv(100) == b"b"


def test_a_server_that_is_gone_is_told_to_clients() -> None:
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
    with TcpProxy(port) as proxy:
        assert _refused(proxy)


def _refused(proxy: TcpProxy) -> bool:
    try:
        with _connect(proxy) as client:
            return _dead(client)
    except ConnectionError:  # The reset may come while the client still connects.
        return True


def _dead(client: socket.socket) -> bool:
    try:
        return client.recv(100) == b""
    except ConnectionError:
        return True
