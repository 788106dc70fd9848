"""Rendered pizzas: the sample dataset, and the pictures the embedded models are trained on.

Everything is drawn in fractions of the picture's side, from one random generator per picture, so a
seed always gives the same picture. The scenes are plain on purpose: a model of a few million
parameters has to learn them, and a person has to see at a glance what each one shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from balancer.errors import UsageError

CLASSES = ("basic", "burnt", "combined", "mixed", "progression", "segment")
LIGHTINGS = ("overhead_harsh", "side_dramatic", "dim_ambient", "backlit_rim")
BURN_LEVELS = ("slightly_burnt", "moderately_burnt", "severely_burnt")
TABLES = ("wood", "slate", "marble")

TRAIN_COUNTS = {"basic": 30, "burnt": 26}
HOLDOUT_COUNT = 20

_SEEDS_PER_DATASET = 1_000

Field = NDArray[np.float32]
Picture = NDArray[np.uint8]
Colour = tuple[float, float, float]

CHAR: Colour = (0.065, 0.05, 0.045)
SAUCE: Colour = (0.74, 0.24, 0.10)
EDGE = 0.012  # how soft an outline is, as a fraction of the side

# Share of the pizza that is char. Far apart, so that they differ under every lighting.
CHAR_SHARE = {
    "slightly_burnt": (0.09, 0.14),
    "moderately_burnt": (0.36, 0.46),
    "severely_burnt": (0.88, 0.96),
}


@dataclass(frozen=True, slots=True)
class _Topping:
    kind: str
    count: int
    radius: float


@dataclass(frozen=True, slots=True)
class _Pizza:
    centre: tuple[float, float]
    radius: float
    toppings: tuple[_Topping, ...]
    doneness: float = 0.5  # 0 raw dough, 0.5 golden, 1 dark brown
    char_share: float = 0.0
    char_on_rim: float = 0.0  # how much the char prefers the crust
    char_half: float | None = None  # angle of the half that is char; the rest stays clean
    wedge: tuple[float, float] | None = None  # direction and half width of a slice, in radians


@dataclass(slots=True)
class _Canvas:
    x: Field
    y: Field
    colour: Field
    distance: Field  # to the nearest outline of a pizza, negative inside
    height: Field = field(init=False)

    def __post_init__(self) -> None:
        self.height = np.zeros_like(self.x)


def table(seed: int) -> str:
    """The table that the picture of this seed shows."""
    return TABLES[int(np.random.default_rng(seed).integers(len(TABLES)))]


def render(class_name: str, lighting: str, burn_level: str | None, seed: int, size: int = 128) -> Picture:
    """One picture, uint8 RGB. `burn_level` is for class burnt, and None for the others."""
    if (class_name == "burnt") != (burn_level is not None):
        raise ValueError(f"class {class_name} with burn level {burn_level}")
    rng = np.random.default_rng(seed)
    canvas = _set_table(TABLES[int(rng.integers(len(TABLES)))], rng, size)
    for pizza in _compose(class_name, burn_level, rng):
        _draw_pizza(canvas, pizza, rng)
    lit = _LIGHTS[lighting](canvas, rng)
    grain = rng.standard_normal(lit.shape, dtype=np.float32) * 0.010
    return (np.clip(lit + grain, 0.0, 1.0) * 255.0).astype(np.uint8)


def write_dataset(directory: Path, seed: int = 0) -> None:
    """`train/` as in the reference case, and a balanced `holdout/`, each with its metadata.

    The directory has to be new or empty.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UsageError(
            f"{directory} exists and is not an empty directory",
            hint="name a new directory, or remove this one first",
        )
    first_seed = seed * _SEEDS_PER_DATASET
    _write_split(directory / "train", TRAIN_COUNTS, first_seed)
    holdout = dict.fromkeys(CLASSES, HOLDOUT_COUNT)
    _write_split(directory / "holdout", holdout, first_seed + sum(TRAIN_COUNTS.values()))


def _write_split(directory: Path, counts: Mapping[str, int], first_seed: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    rows: list[dict[str, str | None]] = []
    for class_name, count in counts.items():
        (directory / class_name).mkdir(parents=True)
        for index in range(count):
            lighting = LIGHTINGS[index % len(LIGHTINGS)]
            burn_level = _burn_level(class_name, index)
            picture = render(class_name, lighting, burn_level, first_seed + len(rows))
            file_name = f"{class_name}/{index + 1:04d}.png"
            Image.fromarray(picture).save(directory / file_name)
            rows.append(
                {
                    "file_name": file_name,
                    "class": class_name,
                    "lighting": lighting,
                    "burn_level": burn_level,
                }
            )
    columns = ("file_name", "class", "lighting", "burn_level")
    schema = pa.schema([(name, pa.string()) for name in columns])
    with open(directory / "metadata.parquet", "wb") as file:  # pyarrow takes no path that is not UTF-8
        pq.write_table(pa.Table.from_pylist(rows, schema), file)


def _burn_level(class_name: str, index: int) -> str | None:
    """Levels in turn, one step later after each round of lightings, so that all pairs occur."""
    if class_name != "burnt":
        return None
    return BURN_LEVELS[(index + index // len(LIGHTINGS)) % len(BURN_LEVELS)]


# --- composition: which pizzas a class shows ------------------------------------------------------


def _compose(class_name: str, burn_level: str | None, rng: np.random.Generator) -> list[_Pizza]:
    if class_name == "progression":
        return _progression(rng)
    if class_name == "segment":
        return [_segment(rng)]
    radius = rng.uniform(0.37, 0.43)
    centre = (0.5 + rng.uniform(-0.04, 0.04), 0.5 + rng.uniform(-0.04, 0.04))
    doneness = rng.uniform(0.42, 0.58)
    pepperoni = _Topping("pepperoni", int(rng.integers(5, 8)), radius * 0.155)
    if class_name == "basic":
        return [_Pizza(centre, radius, (_Topping("basil", 3, radius * 0.2),), doneness)]
    if class_name == "combined":
        return [_Pizza(centre, radius, _many_toppings(radius), doneness)]
    if class_name == "mixed":
        half = rng.uniform(0.0, 2.0 * np.pi)
        return [_Pizza(centre, radius, (pepperoni,), doneness, char_share=0.5, char_half=half)]
    if class_name == "burnt" and burn_level is not None:
        level = BURN_LEVELS.index(burn_level)
        return [
            _Pizza(
                centre,
                radius,
                (pepperoni,),
                doneness=(0.6, 0.72, 0.9)[level],
                char_share=rng.uniform(*CHAR_SHARE[burn_level]),
                char_on_rim=(1.6, 0.6, 0.3)[level],
            )
        ]
    raise ValueError(f"no such class: {class_name}")


def _many_toppings(radius: float) -> tuple[_Topping, ...]:
    return (
        _Topping("pepperoni", 4, radius * 0.155),
        _Topping("pepper", 4, radius * 0.15),
        _Topping("mushroom", 4, radius * 0.14),
        _Topping("olive", 4, radius * 0.13),
    )


def _progression(rng: np.random.Generator) -> list[_Pizza]:
    """Raw, golden and black, from left to right, in a shallow zigzag to leave room for size."""
    radius = rng.uniform(0.16, 0.172)
    tilt = rng.choice((-1.0, 1.0)) * rng.uniform(0.03, 0.09)
    stages = ((0.02, 0.0), (0.5, 0.0), (0.9, 0.88))
    pizzas = []
    for index, (doneness, char_share) in enumerate(stages):
        x = 0.5 + (index - 1) * 0.32 + rng.uniform(-0.01, 0.01)
        y = 0.5 + (tilt if index % 2 else -tilt) + rng.uniform(-0.02, 0.02)
        topping = _Topping("pepperoni", 3, radius * 0.24)
        pizzas.append(_Pizza((x, y), radius, (topping,), doneness, char_share, char_on_rim=0.3))
    return pizzas


def _segment(rng: np.random.Generator) -> _Pizza:
    """One slice, its tip pointing down, so that every picture has the same plain outline."""
    radius = rng.uniform(0.76, 0.84)
    direction = -np.pi / 2 + rng.uniform(-0.25, 0.25)
    reach = radius * 0.55
    centre = (
        0.5 - reach * float(np.cos(direction)) + rng.uniform(-0.03, 0.03),
        0.5 - reach * float(np.sin(direction)) + rng.uniform(-0.02, 0.02),
    )
    toppings = (_Topping("pepperoni", int(rng.integers(3, 5)), 0.068),)
    doneness = rng.uniform(0.42, 0.58)
    return _Pizza(centre, radius, toppings, doneness, wedge=(direction, rng.uniform(0.42, 0.50)))


# --- drawing --------------------------------------------------------------------------------------


def _single(values: Any) -> Field:
    """In single precision: half the memory, and random scalars are double."""
    return np.asarray(values, np.float32)


def _noise(rng: np.random.Generator, size: int, cells: tuple[int, ...]) -> Field:
    """Smooth noise of about unit spread, summed over grids of these many cells."""
    total = np.zeros((size, size), np.float32)
    for octave, count in enumerate(cells):
        grid = rng.standard_normal((count + 2, count + 2), dtype=np.float32)
        position = np.linspace(0.0, count, size, dtype=np.float32)
        low = position.astype(np.intp)
        part = position - low
        part = part * part * (3.0 - 2.0 * part)
        rows = grid[low] * (1.0 - part)[:, None] + grid[low + 1] * part[:, None]
        total += (rows[:, low] * (1.0 - part) + rows[:, low + 1] * part) / (1 + octave)
    return total


def _cover(distance: Field, softness: float = EDGE) -> Field:
    """1 inside an outline, 0 outside, with a soft edge between."""
    return _single(np.clip(0.5 - distance / softness, 0.0, 1.0))


def _blend(below: Field, above: Field | Colour, share: Field) -> Field:
    amount = share[..., None]
    return _single(below * (1.0 - amount) + np.asarray(above, np.float32) * amount)


def _shaded(colour: Colour, texture: Field) -> Field:
    return _single(np.asarray(colour, np.float32) * texture[..., None])


def _mix(first: Colour, second: Colour, share: float) -> Colour:
    a, b, c = (p + (q - p) * share for p, q in zip(first, second, strict=True))
    return (a, b, c)


def _doneness_colour(doneness: float, raw: Colour, golden: Colour, dark: Colour) -> Colour:
    if doneness < 0.5:
        return _mix(raw, golden, doneness * 2.0)
    return _mix(golden, dark, doneness * 2.0 - 1.0)


def _set_table(kind: str, rng: np.random.Generator, size: int) -> _Canvas:
    steps = _single((np.arange(size) + 0.5) / size)
    y, x = np.meshgrid(steps, steps, indexing="ij")
    shade = rng.uniform(0.93, 1.07)
    if kind == "wood":
        grain = _noise(rng, size, (4, 24)).mean(axis=1, keepdims=True)
        seams = np.abs((y * 4.0 + rng.uniform(0.0, 1.0)) % 1.0 - 0.5)
        texture = shade + 0.35 * grain + 0.03 * _noise(rng, size, (6,)) - 0.4 * (seams > 0.48)
        colour = _shaded((0.55, 0.36, 0.21), _single(texture))
    elif kind == "slate":
        texture = shade + 0.07 * _noise(rng, size, (5, 20))
        colour = _shaded((0.30, 0.34, 0.40), _single(texture))
    else:
        veins = np.exp(-((_noise(rng, size, (3, 9)) / 0.16) ** 2))
        texture = shade + 0.04 * _noise(rng, size, (4,)) - 0.09 * veins
        colour = _shaded((0.66, 0.655, 0.64), _single(texture))
    return _Canvas(x, y, colour, np.full((size, size), 9.0, np.float32))


def _draw_pizza(canvas: _Canvas, pizza: _Pizza, rng: np.random.Generator) -> None:
    size = canvas.x.shape[0]
    dx, dy = canvas.x - pizza.centre[0], canvas.y - pizza.centre[1]
    angle = np.arctan2(dy, dx)
    wobble = 1.0 + 0.018 * np.sin(3 * angle + rng.uniform(0, 6))
    wobble += 0.010 * np.sin(7 * angle + rng.uniform(0, 6))
    reach = _single(np.hypot(dx, dy) / wobble)
    outline = reach - pizza.radius
    if pizza.wedge is not None:
        turned = (angle - pizza.wedge[0] + np.pi) % (2 * np.pi) - np.pi
        outline = np.maximum(outline, reach * np.sin(np.abs(turned) - pizza.wedge[1]))
    # A slice of a large pizza has a crust no wider than a whole one's.
    crust_width = min(0.16 * pizza.radius, 0.075)
    inner = _cover(reach - (pizza.radius - crust_width), 0.018)
    coarse, fine = _noise(rng, size, (5, 10)), _noise(rng, size, (14, 28))
    colour = _dough(pizza.doneness, coarse, fine)
    colour = _blend(colour, _filling(pizza, reach, crust_width, coarse, fine), inner)
    colour = _add_toppings(canvas, colour, pizza, inner, fine, rng)
    char = _char(pizza, dx, dy, reach, outline, coarse, fine)
    colour = _blend(colour, _shaded(CHAR, 1.0 + 0.25 * fine), char)
    bump = np.exp(-(((reach - pizza.radius + crust_width * 0.5) / (crust_width * 0.5)) ** 2))
    inside = _cover(outline)
    canvas.colour = _blend(canvas.colour, colour, inside)
    canvas.height += inside * (0.5 + 0.5 * bump + 0.05 * coarse)
    canvas.distance = _single(np.minimum(canvas.distance, outline))


def _dough(doneness: float, coarse: Field, fine: Field) -> Field:
    crust = _doneness_colour(doneness, (0.90, 0.81, 0.62), (0.83, 0.57, 0.28), (0.42, 0.24, 0.12))
    return _shaded(crust, 1.0 + 0.07 * coarse + 0.04 * fine)


def _filling(pizza: _Pizza, reach: Field, crust_width: float, coarse: Field, fine: Field) -> Field:
    cheese = _doneness_colour(pizza.doneness, (0.96, 0.89, 0.70), (0.97, 0.80, 0.40), (0.62, 0.42, 0.18))
    colour = _shaded(cheese, 1.0 + 0.035 * coarse + 0.035 * fine)
    patches = np.clip((coarse - 0.75) * 1.6, 0.0, 0.75)
    ring = np.clip(1.0 - (pizza.radius - crust_width - reach) / (0.4 * crust_width), 0.0, 1.0)
    sauce = np.clip(patches + 0.8 * ring, 0.0, 0.85) * (0.35 if pizza.doneness < 0.2 else 1.0)
    return _blend(colour, SAUCE, _single(sauce))


def _add_toppings(
    canvas: _Canvas,
    colour: Field,
    pizza: _Pizza,
    inner: Field,
    fine: Field,
    rng: np.random.Generator,
) -> Field:
    taken: list[tuple[float, float, float]] = []
    for index in range(max((t.count for t in pizza.toppings), default=0)):
        for topping in pizza.toppings:
            if index >= topping.count:
                continue
            spot = _free_spot(pizza, topping.radius, taken, rng)
            if spot is None:
                continue
            taken.append((*spot, topping.radius))
            colour = _add_topping(canvas, colour, topping, spot, inner, fine, rng)
    return colour


def _free_spot(
    pizza: _Pizza,
    radius: float,
    taken: list[tuple[float, float, float]],
    rng: np.random.Generator,
) -> tuple[float, float] | None:
    for _ in range(40):
        if pizza.wedge is None:
            reach = pizza.radius * 0.74 * np.sqrt(rng.uniform())
            angle = rng.uniform(0.0, 2.0 * np.pi)
        else:
            reach = pizza.radius * rng.uniform(0.34, 0.82)
            room = max(0.02, pizza.wedge[1] - 0.95 * radius / reach)
            angle = pizza.wedge[0] + rng.uniform(-room, room)
        x = pizza.centre[0] + reach * float(np.cos(angle))
        y = pizza.centre[1] + reach * float(np.sin(angle))
        if all(np.hypot(x - u, y - v) > 0.98 * (radius + r) for u, v, r in taken):
            return float(x), float(y)
    return None


def _add_topping(
    canvas: _Canvas,
    colour: Field,
    topping: _Topping,
    spot: tuple[float, float],
    inner: Field,
    fine: Field,
    rng: np.random.Generator,
) -> Field:
    turn = rng.uniform(0.0, 2.0 * np.pi)
    radius = topping.radius * rng.uniform(0.92, 1.08)
    dx, dy = canvas.x - spot[0], canvas.y - spot[1]
    along = dx * np.cos(turn) + dy * np.sin(turn)
    across = dy * np.cos(turn) - dx * np.sin(turn)
    reach = np.hypot(dx, dy)
    texture = 1.0 + 0.06 * fine
    if topping.kind == "pepperoni":
        shape = _cover(reach - radius)
        fill = _shaded((0.72, 0.15, 0.09), texture * (1.08 - 0.3 * (reach / radius) ** 4))
    elif topping.kind == "basil":
        shape = _cover(np.hypot(along, across * 2.1) - radius)
        fill = _shaded((0.16, 0.46, 0.13), texture + 0.35 * (np.abs(across) < radius * 0.08))
    elif topping.kind == "pepper":
        shape = _cover(np.hypot(along, across * 1.5) - radius)
        fill = _shaded((0.25, 0.62, 0.16), texture)
    elif topping.kind == "mushroom":
        shape = _cover(np.hypot(along * 1.25, across) - radius)
        rim = np.hypot(along * 1.25, across) > radius * 0.75
        fill = _shaded((0.93, 0.89, 0.82), texture - 0.25 * rim)
    else:
        shape = _cover(np.abs(reach - radius * 0.68) - radius * 0.34)
        fill = _shaded((0.11, 0.10, 0.12), texture)
    return _blend(colour, _single(fill), shape * inner)


def _char(
    pizza: _Pizza,
    dx: Field,
    dy: Field,
    reach: Field,
    outline: Field,
    coarse: Field,
    fine: Field,
) -> Field:
    """Where the pizza is black, 0 to 1; the threshold is set so that the share is exact."""
    if pizza.char_share == 0.0:
        return np.zeros_like(reach)
    if pizza.char_half is not None:
        side = np.cos(pizza.char_half) * dx + np.sin(pizza.char_half) * dy
        side = side + pizza.radius * (0.05 * coarse + 0.02 * fine)
        return _single(0.96 * np.clip(side / (0.08 * pizza.radius) + 0.5, 0.0, 1.0))
    heat = coarse + 0.35 * fine + pizza.char_on_rim * (reach / pizza.radius) ** 4
    threshold = np.quantile(heat[outline < 0.0], 1.0 - pizza.char_share)
    return _single(0.96 * np.clip((heat - threshold) * 4.0 + 0.5, 0.0, 1.0))


# --- light ----------------------------------------------------------------------------------------


def _shifted(values: Field, right: float, down: float) -> Field:
    size = values.shape[0]
    steps = np.arange(size)
    rows = np.clip(steps - round(down * size), 0, size - 1)
    columns = np.clip(steps - round(right * size), 0, size - 1)
    return values[np.ix_(rows, columns)]


def _cast_shadow(canvas: _Canvas, right: float, down: float, softness: float, depth: float) -> Field:
    shadow = _cover(_shifted(canvas.distance, right, down), softness)
    on_table = shadow * (1.0 - _cover(canvas.distance))
    return _single(canvas.colour * (1.0 - depth * on_table)[..., None])


def _overhead_harsh(canvas: _Canvas, rng: np.random.Generator) -> Field:
    """A hot spot, blown highlights, a short black shadow under the edge."""
    x, y = 0.5 + rng.uniform(-0.06, 0.06), 0.5 + rng.uniform(-0.06, 0.06)
    lit = _cast_shadow(canvas, 0.0, 0.02, 0.035, 0.75)
    gain = 1.36 - 1.5 * ((canvas.x - x) ** 2 + (canvas.y - y) ** 2)
    return _single((lit * gain[..., None] - 0.5) * 1.25 + 0.5)


def _side_dramatic(canvas: _Canvas, rng: np.random.Generator) -> Field:
    """Light from the left or the right, falling off across the picture, with a long shadow."""
    side = float(rng.choice((-1.0, 1.0)))
    lit = _cast_shadow(canvas, -0.06 * side, 0.015, 0.06, 0.8)
    near = np.clip(0.5 + side * (canvas.x - 0.5), 0.0, 1.0)
    slope = np.gradient(canvas.height, axis=1) * canvas.height.shape[0]
    relief = np.clip(-0.025 * side * slope, -0.35, 0.5) * _cover(canvas.distance)
    gain = (0.20 + 1.25 * near**1.5) * (1.0 + relief)
    return _single(lit * gain[..., None] * np.array((1.06, 1.0, 0.88), np.float32))


def _dim_ambient(canvas: _Canvas, rng: np.random.Generator) -> Field:
    """Little light from everywhere: dark and warm, hardly any shadow."""
    lit = _cast_shadow(canvas, 0.0, 0.0, 0.08, 0.4)
    level = rng.uniform(0.40, 0.46)
    return _single(lit * np.array((1.08, 0.94, 0.74), np.float32) * level + 0.02)


def _backlit_rim(canvas: _Canvas, rng: np.random.Generator) -> Field:
    """Light from behind the far edge: dark pizza, glowing rim, bright table at the top."""
    size = canvas.distance.shape[0]
    inside = _cover(canvas.distance)
    facing = np.clip(-np.gradient(canvas.distance, axis=0) * size, 0.0, 1.0)
    rim = np.exp(-((canvas.distance / 0.022) ** 2)) * (0.55 + 0.45 * facing)
    halo = np.exp(-np.clip(canvas.distance, 0.0, None) / 0.05) * (0.15 + 0.25 * facing)
    behind = 0.40 + rng.uniform(0.75, 0.9) * (1.0 - canvas.y) ** 1.5
    gain = inside * 0.46 + (1.0 - inside) * behind
    lit = canvas.colour * gain[..., None]
    glow = _single(np.clip(rim + halo * (1.0 - inside), 0.0, 1.0))
    return _blend(_single(lit), (1.0, 0.91, 0.72), glow * 0.95)


_LIGHTS = {
    "overhead_harsh": _overhead_harsh,
    "side_dramatic": _side_dramatic,
    "dim_ambient": _dim_ambient,
    "backlit_rim": _backlit_rim,
}
