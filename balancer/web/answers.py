"""Answers that the pages of every local server give: files of the package, images, JSON within limits."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from balancer.errors import BalancerError
from balancer.text.json_reading import read_json
from balancer.web.images import SIDES, ImageShelf, Picture

MAX_BODY_BYTES = 256_000
"""A page sends 50 decisions at a time, 300 bytes each."""

IMAGES_MAY_BE_KEPT = "private, max-age=3600, immutable"

_KINDS = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}

SHARED = dict.fromkeys(("page.css", "icon.svg"), "balancer.web")


class TooLargeBody(ValueError):
    pass


def static_routes(package_of: Mapping[str, str]) -> list[Route]:
    """A route for each file, by name and the package that holds it. They are read once."""
    return [Route(f"/{name}", _file_answer(name, package)) for name, package in package_of.items()]


def _file_answer(name: str, package: str) -> Any:
    answer = Response(files(package).joinpath(name).read_bytes(), media_type=_KINDS[name.rpartition(".")[2]])

    async def endpoint(request: Request) -> Response:
        return answer

    return endpoint


def image_routes(shelf: ImageShelf) -> list[Route]:
    def endpoint(request: Request) -> Response:
        key, side = request.path_params["key"], request.path_params.get("side")
        if side is not None and side not in SIDES:
            return PlainTextResponse("no such size", status_code=404)
        return image_answer(shelf, key, side)

    return [Route("/images/{key}", endpoint), Route("/images/{key}/{side:int}", endpoint)]


def image_answer(shelf: ImageShelf, key: str, side: int | None) -> Response:
    try:
        picture: Picture = shelf.picture(key) if side is None else shelf.thumbnail(key, side)
    except KeyError:
        return PlainTextResponse("no such image", status_code=404)
    except BalancerError as error:  # also what cannot be decoded
        return PlainTextResponse(error.message, status_code=404)
    return Response(
        picture.data, media_type=picture.media_type, headers={"cache-control": IMAGES_MAY_BE_KEPT}
    )


async def read_body(request: Request) -> Any:
    """The JSON that a page sent; ValueError for anything else, TooLargeBody before more is read."""
    if request.headers.get("content-type") != "application/json":
        raise ValueError("it is not sent as application/json")
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > MAX_BODY_BYTES:
            raise TooLargeBody(f"more than {MAX_BODY_BYTES} bytes")
    return await run_in_threadpool(read_json, data)


def problem(message: str, status: int) -> JSONResponse:
    return JSONResponse({"error": message}, status_code=status)
