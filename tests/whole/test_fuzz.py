"""Whatever strangers write into a file, reading it ends with what was read or with an error of ours, soon.

Each file begins as a sound one and is then changed at random; damage that a checksum would tell is signed
again, as one who means harm would. For a longer search say how many:

    BALANCER_FUZZ_EXAMPLES=20000 python -m pytest tests/whole/test_fuzz.py
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from balancer.config.load import load_config
from balancer.config.schema import Config
from balancer.errors import BalancerError, ConfigError, ManifestError
from balancer.images import FORMATS, UnreadableImage, decode_image
from balancer.manifest.layout import RUN_FILE, fragment_path
from balancer.manifest.log.fragment import _MARKED, _digest, decode
from balancer.manifest.log.reader import last_seq
from balancer.manifest.runfile import read_run
from balancer.planning.plan import make_plan
from tests.manifest_samples import MemoryStorage, row, start

PROJECT = Path(__file__).parents[2]
EXAMPLES = int(os.environ.get("BALANCER_FUZZ_EXAMPLES", "150"))
LIMIT_S = 20
MAX_PIXELS = 1_000_000

fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=1000 * LIMIT_S,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

SPOTS = st.floats(0, 1, exclude_max=True)
CUTS = st.lists(st.tuples(SPOTS, st.integers(0, 40), st.binary(max_size=40)), min_size=1, max_size=4)
"""Where, how many bytes go, and what comes in their place."""

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
"""Anything that JSON and YAML can say."""


def damaged(data: bytes, cuts: list[tuple[float, int, bytes]]) -> bytes:
    for where, length, filling in cuts:
        at = int(where * len(data))
        data = data[:at] + filling + data[at + length :]
    return data


def changed(document: Any, where: list[float], value: Any) -> Any:
    """A copy of a JSON document with one value replaced, as deep in it as `where` leads."""
    document = copy.deepcopy(document)
    parent: Any = None
    key: Any = None
    node = document
    for spot in where:
        if not isinstance(node, dict | list) or not node:
            break
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        parent, key = node, keys[int(spot * len(keys))]
        node = parent[key]
    if parent is None:
        return value
    parent[key] = value
    return document


# ---- configs -----------------------------------------------------------------------------------------


CONFIGS = [PROJECT / "configs" / "demo.yaml", PROJECT / "configs" / "pizza.yaml"]
EARLIER = PROJECT / "tests" / "data" / "earlier_config.json"


@pytest.mark.parametrize("path", [*CONFIGS, EARLIER], ids=lambda path: path.name)
@fuzzed
@given(cuts=CUTS)
def test_a_config_of_any_bytes_is_one_or_has_its_problems_told(path, tmp_path, cuts):
    file = tmp_path / path.name
    file.write_bytes(damaged(path.read_bytes(), cuts))
    with contextlib.suppress(ConfigError):
        assert isinstance(load_config(file), Config)


@pytest.mark.parametrize("path", [CONFIGS[0], EARLIER], ids=lambda path: path.name)
@fuzzed
@given(where=st.lists(SPOTS, min_size=1, max_size=7), value=VALUES)
def test_a_config_with_any_value_is_planned_or_has_its_problems_told(path, tmp_path, where, value):
    file = tmp_path / "config.json"
    document = (
        json.loads(EARLIER.read_bytes()) if path == EARLIER else load_config(path).model_dump(mode="json")
    )
    file.write_text(json.dumps(changed(document, where, value)))
    with contextlib.suppress(BalancerError):
        config = load_config(file)
        plan = make_plan(config, dict.fromkeys(config.classes, 3))
        assert plan.total == sum(cell.quota for cell in plan.cells)


# ---- manifests ---------------------------------------------------------------------------------------


def fragment(storage: MemoryStorage) -> tuple[bytes, int, Any]:
    """The bytes of the fragment with rows, its number and its schema."""
    log = start(storage)
    log.commit([row("burnt/dim/severe/0000"), row("basic/dim/0001")])
    seq = last_seq(storage)
    return storage.files[fragment_path(seq)], seq, read_run(storage).schema()


def signed(data: bytes, token: bytes) -> bytes:
    """The checksum made right again, so that only what is in the file can tell."""
    return data.replace(token, _digest(data, token)) if token in data else data


@fuzzed
@given(cuts=CUTS, same_length=st.booleans())
def test_a_fragment_of_any_bytes_is_read_whole_or_refused(cuts, same_length):
    data, seq, schema = fragment(MemoryStorage())
    token = next(token for token in _MARKED.findall(data) if _digest(data, token) == token)
    if same_length:  # where lengths and offsets still fit, more of it is looked at
        cuts = [(where, len(filling), filling) for where, _, filling in cuts]
    with contextlib.suppress(ManifestError):
        found = decode(signed(damaged(data, cuts), token), seq, schema)
        found.table.validate(full=True)
        assert found.table.schema.names == schema.names
        found.table.to_pylist()


@fuzzed
@given(where=st.lists(SPOTS, min_size=1, max_size=6), value=VALUES)
def test_a_run_file_of_any_content_is_read_or_refused(where, value):
    storage = MemoryStorage()
    fragment(storage)
    document = json.loads(storage.files[RUN_FILE])
    storage.files[RUN_FILE] = json.dumps(changed(document, where, value)).encode()
    with contextlib.suppress(BalancerError):
        read_run(storage)


@fuzzed
@given(cuts=CUTS)
def test_a_run_file_of_any_bytes_is_read_or_refused(cuts):
    storage = MemoryStorage()
    fragment(storage)
    storage.files[RUN_FILE] = damaged(storage.files[RUN_FILE], cuts)
    with contextlib.suppress(BalancerError):
        read_run(storage)


# ---- images ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures() -> dict[str, bytes]:
    if "HEIF" in FORMATS:
        pytest.importorskip("pillow_heif").register_heif_opener()
    picture = Image.radial_gradient("L").convert("RGB").resize((48, 40))
    found = {}
    for image_format in FORMATS:
        file = io.BytesIO()
        picture.save(file, image_format)
        found[image_format] = file.getvalue()
    return found


@pytest.mark.parametrize("image_format", FORMATS)
@fuzzed
@given(cuts=CUTS, same_length=st.booleans())
def test_an_image_of_any_bytes_is_pixels_or_has_its_reason(pictures, image_format, cuts, same_length):
    if same_length:
        cuts = [(where, len(filling), filling) for where, _, filling in cuts]
    with contextlib.suppress(UnreadableImage):
        pixels = decode_image(damaged(pictures[image_format], cuts), max_pixels=MAX_PIXELS)
        assert pixels.shape[0] * pixels.shape[1] <= MAX_PIXELS


@pytest.mark.parametrize(
    "beginning", [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\0\0\0\0WEBPVP8X", b""]
)
@fuzzed
@given(rest=st.binary(max_size=400))
def test_bytes_that_only_begin_like_an_image_have_their_reason(beginning, rest):
    with pytest.raises(UnreadableImage):
        decode_image(beginning + rest, max_pixels=MAX_PIXELS)
