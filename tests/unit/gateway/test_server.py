"""The gateway says on which address it cannot listen."""

import socket

import pytest

from claw_r1.errors import WrongUse
from gateway.server import listen


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(WrongUse, match=rf"127\.0\.0\.1:{port}.*CLAW_GATEWAY_PORT"):
            listen("127.0.0.1", port)


def test_a_host_that_is_not_of_this_machine_is_named() -> None:
    with pytest.raises(WrongUse, match=r"192\.0\.2\.1"):
        listen("192.0.2.1", 0)
