"""Who is let in: pages of the server's own, by their secret address."""

from __future__ import annotations

import asyncio

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from balancer.web.door import HEADERS, Door
from tests.web.asking import FROM_OWN, OWN, PORT, TOKEN, ask


async def page(request):
    return PlainTextResponse(f"the page, {request.method}")


APP = Starlette(routes=[Route("/", page, methods=["GET", "POST"])])


def test_its_own_pages_are_answered():
    assert ask(APP, f"/{TOKEN}/").body == b"the page, GET"
    assert ask(APP, f"/{TOKEN}/", "POST").body == b"the page, POST"
    assert ask(APP, f"/{TOKEN}/", headers={"host": f"localhost:{PORT}"}).status == 200


@pytest.mark.parametrize(
    "path",
    ["/", "", "/the-toke/", "/the-tokenx/", f"/{TOKEN}", f"/{TOKEN.upper()}/", f"//{TOKEN}/", "/tökén/"],
)
def test_an_address_without_the_token_is_refused(path):
    answer = ask(APP, path)
    assert answer.status == 403
    assert TOKEN.encode() not in answer.body


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        f"evil.example:{PORT}",
        "127.0.0.1",
        "127.0.0.1:1",
        f"127.0.0.1.evil.example:{PORT}",
        "",
    ],
)
def test_a_foreign_host_is_refused_even_with_the_token(host):
    """A name of somebody else that leads to this machine: DNS rebinding."""
    assert ask(APP, f"/{TOKEN}/", headers={"host": host}).status == 403


def test_no_host_and_two_hosts_are_refused():
    assert ask(APP, f"/{TOKEN}/", headers={}).status == 403
    scope = {"type": "http", "method": "GET", "path": f"/{TOKEN}/"}
    twice = Door(APP, TOKEN, PORT)._refusal({**scope, "headers": [(b"host", b"127.0.0.1:8765")] * 2})
    assert twice == "it names another host"


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:1", f"https://127.0.0.1:{PORT}", ""]
)
def test_a_request_of_another_page_is_refused_even_with_the_token(method, origin):
    assert ask(APP, f"/{TOKEN}/", method, {**OWN, "origin": origin}).status == 403


def test_what_changes_something_says_from_which_page_it_comes():
    assert ask(APP, f"/{TOKEN}/", "POST", OWN).status == 403
    assert ask(APP, f"/{TOKEN}/", "POST", FROM_OWN).status == 200


@pytest.mark.parametrize("path", [f"/{TOKEN}/", f"/{TOKEN}/nothing", "/"])
def test_every_answer_forbids_what_is_not_a_file_of_ours(path):
    headers = ask(APP, path).headers
    assert {name: headers[name] for name in HEADERS} == HEADERS
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
    assert (headers["referrer-policy"], headers["cache-control"]) == ("no-referrer", "no-store")


def test_a_web_socket_is_not_opened():
    async def nothing(*_):
        raise AssertionError("somebody was answered")

    asyncio.run(Door(nothing, TOKEN, PORT)({"type": "websocket"}, nothing, nothing))
