"""Images of a run are shown by key, whatever their files are."""

from __future__ import annotations

import io

import pytest
from PIL import Image
from starlette.applications import Starlette

from balancer.images import UnreadableImage
from balancer.storage import MissingFileError
from balancer.web.answers import image_routes
from balancer.web.images import ImageShelf
from tests.web.asking import get


def encoded(kind, size=(40, 20), **options):
    out = io.BytesIO()
    Image.new("RGB", size, "red").save(out, kind, **options)
    return out.getvalue()


FILES = {
    "a.png": encoded("PNG"),
    "a.jpg": encoded("JPEG"),
    "a.webp": encoded("WEBP"),
    "a.tif": encoded("TIFF"),
    "page.png": b"<html><script>alert(1)</script>",
    "drawing.png": b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
    "large.png": encoded("PNG", (2000, 1000)),
}


def read(name):
    if name not in FILES:
        raise MissingFileError(f"{name} is missing")
    return FILES[name]


@pytest.fixture
def shelf():
    return ImageShelf(read, "run-1", max_pixels=1_000_000)


def test_what_browsers_show_is_sent_as_it_is_and_anything_else_as_png(shelf):
    shown = {name: shelf.picture(shelf.put(name)) for name in ("a.png", "a.jpg", "a.webp", "a.tif")}
    kinds = [picture.media_type for picture in shown.values()]
    assert kinds == ["image/png", "image/jpeg", "image/webp", "image/png"]
    assert shown["a.webp"].data == FILES["a.webp"]
    assert Image.open(io.BytesIO(shown["a.tif"].data)).size == (40, 20)


@pytest.mark.parametrize("name", ["page.png", "drawing.png"])
def test_a_file_that_is_no_image_is_not_sent_under_any_type(shelf, name):
    key = shelf.put(name)
    with pytest.raises(UnreadableImage):
        shelf.picture(key)
    answer = get(Starlette(routes=image_routes(shelf)), f"images/{key}")
    assert answer.status == 404
    assert answer.headers["content-type"].startswith("text/plain")
    assert b"alert" not in answer.body


def test_a_thumbnail_fits_into_its_square_and_is_made_once(shelf, monkeypatch):
    key = shelf.put("a.png")
    small = shelf.thumbnail(key, 160)
    monkeypatch.setitem(FILES, "a.png", b"")
    assert shelf.thumbnail(key, 160) is small
    assert Image.open(io.BytesIO(small.data)).size == (40, 20)


def test_no_image_with_more_pixels_than_the_run_allows_is_decoded(shelf):
    with pytest.raises(UnreadableImage, match="megapixels"):
        shelf.thumbnail(shelf.put("large.png"), 160)


def test_thumbnails_in_memory_are_bounded(shelf, monkeypatch):
    monkeypatch.setattr("balancer.web.images.KEPT_BYTES", 1000)
    for name in ("a.png", "a.jpg", "a.webp"):
        shelf.thumbnail(shelf.put(name), 160)
    assert sum(len(one.data) for one in shelf._small.values()) <= 1000


@pytest.mark.parametrize(
    "path", ["a.png", "..%2f..%2frun.json", "../run.json", "/etc/hostname", "0" * 24, "0" * 24 + "/160"]
)
def test_only_keys_lead_to_images_never_a_path(shelf, path):
    shelf.put("a.png")
    assert get(Starlette(routes=image_routes(shelf)), f"images/{path}").status == 404


def test_only_some_sizes_are_made(shelf):
    app, key = Starlette(routes=image_routes(shelf)), shelf.put("a.png")
    assert [get(app, f"images/{key}/{side}").status for side in (160, 320, 161, 10**9)] == [
        200,
        200,
        404,
        404,
    ]


def test_of_several_places_the_first_that_is_there_counts(shelf):
    assert shelf.picture(shelf.put("gone.png", "a.jpg")).media_type == "image/jpeg"
    with pytest.raises(MissingFileError):
        shelf.picture(shelf.put("gone.png", "gone.jpg"))


def test_a_key_is_the_same_in_every_process_and_another_one_in_another_run(shelf):
    again = ImageShelf(read, "run-1", max_pixels=1)
    other = ImageShelf(read, "run-2", max_pixels=1)
    assert shelf.put("a.png") == again.put("a.png") != other.put("a.png")
    assert "a.png" not in shelf.put("a.png")
