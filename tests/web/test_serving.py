"""The server listens on this machine alone, and ends when it is told to."""

from __future__ import annotations

import http.client
import signal
import socket
import threading
from contextlib import closing

import psutil
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from balancer.errors import StorageError, UnavailableError
from balancer.process.signals import Stopped, StopSignal
from balancer.web import serving
from balancer.web.serving import listening, serve


async def page(request):
    return PlainTextResponse("here")


APP = Starlette(routes=[Route("/", page)])


def fetch(address, path):
    with closing(http.client.HTTPConnection("127.0.0.1", address.port, timeout=10)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()


def test_it_listens_on_the_loopback_address_only():
    with listening(None) as address:
        own = [one.laddr for one in psutil.Process().net_connections() if one.laddr.port == address.port]
        assert {place.ip for place in own} == {"127.0.0.1"}


def test_a_port_that_is_taken_is_an_error_that_names_it_unless_nobody_asked_for_it(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        with pytest.raises(UnavailableError, match=f"port {taken} cannot be used"), listening(taken):
            pass
        monkeypatch.setattr(serving, "USUAL_PORT", taken)
        with listening(None) as address:
            assert address.port != taken


def test_each_server_has_a_token_of_its_own():
    with listening(None) as one, listening(None) as other:
        assert one.token != other.token
        assert len(one.token) >= 43  # 256 bits


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_answers_until_a_signal_and_only_ctrl_c_is_a_plain_end(number):
    stop, ends, worked = StopSignal(), [], threading.Event()

    def run(address):
        try:
            serve(address, APP, stop, worked.set)
            ends.append("plain")
        except Stopped:
            ends.append("interrupted")

    with listening(None) as address:
        server = threading.Thread(target=run, args=[address])
        server.start()
        assert fetch(address, f"/{address.token}/") == (200, b"here")
        assert fetch(address, "/")[0] == 403
        assert worked.wait(30)
        stop(number)
        server.join(30)
    assert ends == ["plain" if number == signal.SIGINT else "interrupted"]


def test_work_that_fails_is_told_once_and_tried_again(caplog):
    calls = []

    def work():
        calls.append(1)
        if len(calls) > 2:
            stop(signal.SIGINT)
        raise StorageError("no space left")

    stop = StopSignal()
    with listening(None) as address:
        serve(address, APP, stop, work)
    assert len(calls) > 2
    assert [record.getMessage() for record in caplog.records] == ["no space left; it is tried again"]
