"""The page of trained adapters: how the loss fell, and the same samples before and after."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from balancer.adaptation.plan import Sample, Task
from balancer.adaptation.record import TrainedAdapter
from balancer.adaptation.store import AdapterFolder, When
from balancer.text.templates import jpeg_uri, templates

POINTS = 200
"""Of a curve; each is the mean of the steps between two of them."""

WIDTH, HEIGHT = 600, 150
"""Of the drawing of a curve."""

MAX_PIXELS = 10_000_000


@dataclass(frozen=True, slots=True)
class Picture:
    title: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class Curve:
    """`points` are for an SVG polyline; `least` and `most` are the losses at its bottom and top."""

    points: str
    least: float
    most: float


@dataclass(frozen=True, slots=True)
class Shown:
    adapter: TrainedAdapter
    curve: Curve
    pictures: tuple[Picture, ...]


def render_page(title: str, tasks: Sequence[Task], folder: AdapterFolder) -> str:
    trained = {one.name: one for one in folder.adapters()}
    shown = [_show(trained[task.name], task, folder) for task in tasks if task.name in trained]
    settings = tasks[0].settings.model_dump(mode="json", exclude={"steps"}) if tasks else {}
    return (
        templates("balancer.adaptation")
        .get_template("page.html.j2")
        .render(
            title=title or "adapters",
            adapters=shown,
            settings=settings,
            uri=folder.uri,
            width=WIDTH,
            height=HEIGHT,
        )
    )


def _show(adapter: TrainedAdapter, task: Task, folder: AdapterFolder) -> Shown:
    rows = {when: _cut(folder.read_samples(adapter.name, when), len(task.samples)) for when in _WHEN}
    pictures = tuple(
        Picture(_title(sample), before, after)
        for sample, before, after in zip(task.samples, rows["before"], rows["after"], strict=True)
    )
    return Shown(adapter, draw_curve(adapter.losses), pictures)


_WHEN: tuple[When, ...] = ("before", "after")


def _title(sample: Sample) -> str:
    return f"{sample.class_name}: {sample.prompt}"


def draw_curve(losses: Sequence[float]) -> Curve:
    means = list(_means(losses))
    least, most = min(means), max(means)
    height = (most - least) or 1.0
    across = max(len(means) - 1, 1)
    points = " ".join(
        f"{WIDTH * place / across:.1f},{HEIGHT * (most - mean) / height:.1f}"
        for place, mean in enumerate(means)
    )
    return Curve(points, least, most)


def _means(losses: Sequence[float]) -> Iterator[float]:
    count = min(len(losses), POINTS)
    for place in range(count):
        part = losses[place * len(losses) // count : (place + 1) * len(losses) // count]
        yield sum(part) / len(part)


def _cut(sheet: bytes | None, count: int) -> list[str | None]:
    """The samples of a sheet, as data URIs."""
    if sheet is None:
        return [None] * count
    from PIL import Image

    from balancer.images import UnreadableImage, decode_image

    try:
        pixels = decode_image(sheet, max_pixels=MAX_PIXELS)
    except UnreadableImage:
        return [None] * count
    if not (width := pixels.shape[1] // count):
        return [None] * count
    samples = (pixels[:, place * width : (place + 1) * width] for place in range(count))
    return [jpeg_uri(Image.fromarray(sample)) for sample in samples]
