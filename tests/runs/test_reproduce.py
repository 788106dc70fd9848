"""Images made again from their rows: the same pixels, or one line that says why not."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from click.testing import CliRunner, Result

import actors.reproduce
from actors.models.generator import Generator
from actors.models.simulated import SimulatedGenerator
from actors.specs import GeneratorSpec
from actors.weights import resolve as weights
from balancer import open_manifest
from balancer.cli import main
from balancer.config.schema import Config
from balancer.errors import ManifestError, UsageError
from balancer.images import encode_image, pixel_sha256
from balancer.run_manifest import Manifest
from balancer.runs.reproduction import Outcome, Reproduction, compare, excused
from balancer.scheduling.prompts import Request
from balancer.storage import open_storage
from tests.manifest_samples import CONFIG, real, rejected, row, start

FIRST, SECOND, REJECTED = "basic/dim/0000-1", "burnt/dim/severe/0000-1", "basic/dim/0001-1"
SIZE = {"width": 64, "height": 64}
SMALL = CONFIG | {"generation": CONFIG["generation"] | SIZE}


# ---- the reference case ------------------------------------------------------------------------


@pytest.fixture
def varied(reference_run):
    """Accepted images of the reference case: of each cell at each attempt one."""
    rows = (
        open_manifest(reference_run).to_table(["id", "slot", "attempt"], "source = 'synthetic'").to_pylist()
    )
    return [*{(row["slot"].rpartition("/")[0], row["attempt"]): row["id"] for row in rows}.values()]


def test_accepted_images_of_the_reference_case_are_made_again_identically(reference_run, varied):
    command = [sys.executable, "-m", "balancer", "reproduce", str(reference_run), *varied]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert len(varied) > 32
    *lines, last = result.stdout.splitlines()
    assert last == f"{len(varied)} images: {len(varied)} identical", result.stderr
    assert {line.rpartition(": ")[2] for line in lines} <= {"identical"}
    assert result.returncode == 0


@pytest.mark.soak
def test_every_accepted_image_of_the_reference_case_is_made_again_identically(reference_run):
    command = [sys.executable, "-m", "balancer", "reproduce", str(reference_run), "--all"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stdout == "244 images: 244 identical\n", result.stderr
    assert result.returncode == 0


# ---- small runs of simulated images --------------------------------------------------------------


def columns(image_id: str, **changes: Any) -> dict[str, Any]:
    """What a row says of how its image was made, all of which goes into a simulated image."""
    seed = int.from_bytes(hashlib.blake2b(image_id.encode(), digest_size=8).digest(), "little")
    told: dict[str, Any] = {
        "prompt": f"a picture of {image_id}", "negative_prompt": "", "seed": seed, "wording": 1,
        "changes": [], "model": "embedded", "model_revision": None, "steps": 30, "guidance": 7.5,
        "batch_size": 4, "device": "none", "split": "train", **SIZE,
    }  # fmt: skip
    return told | changes


def pixels_of(told: dict[str, Any]) -> np.ndarray:
    request = Request(told["prompt"], told["negative_prompt"], told["seed"], told["wording"])
    (pixels,), _ = SimulatedGenerator(1, SIZE["width"], SIZE["height"]).generate([request], told["guidance"])
    return pixels


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Manifest]:
    """A run with two accepted images, a rejected one and a real one. `changes` are made to the first row,
    `touch` to the pixels of its file."""

    def make(
        touch: Callable[[np.ndarray], np.ndarray] = lambda pixels: pixels,
        settings: dict[str, Any] | None = None,
        **changes: Any,
    ) -> Manifest:
        storage = open_storage(tmp_path / "run", create=True)
        rows = []
        for image_id in (FIRST, SECOND):
            told = columns(image_id)
            kept = pixels_of(told)
            data = encode_image(touch(kept) if image_id == FIRST else kept, {"id": image_id})
            storage.publish(f"images/{image_id}.png", data)
            file = {"file_name": f"images/{image_id}.png", "sha256": hashlib.sha256(data).hexdigest()}
            told |= file | {"num_bytes": len(data), "pixel_sha256": pixel_sha256(kept)}
            rows.append(row(image_id.rpartition("-")[0]) | told | (changes if image_id == FIRST else {}))
        told = columns(REJECTED)
        told["pixel_sha256"] = pixel_sha256(pixels_of(told))
        rows.append(rejected(REJECTED.rpartition("-")[0]) | told)
        rows.append(real("a.png", split="train"))
        config = SMALL | {"actors": {"kind": "simulated"}} | (settings or {})
        start(storage, config=config, versions={"torch": "0.1"}).commit(rows)
        return open_manifest(tmp_path / "run")

    return make


def made_again(manifest: Manifest, *ids: str) -> list[Reproduction]:
    rows = actors.reproduce.rows_to_reproduce(manifest, ids or None)
    return list(actors.reproduce.reproduce(manifest, rows))


def test_accepted_images_are_made_again(make_run):
    found = made_again(make_run())
    assert found == [Reproduction(name, Outcome.IDENTICAL) for name in (FIRST, SECOND)]


def test_of_a_rejected_candidate_the_hash_of_its_pixels_is_enough(make_run):
    assert made_again(make_run(), REJECTED) == [Reproduction(REJECTED, Outcome.IDENTICAL)]


def test_of_a_jpeg_which_has_other_pixels_the_hash_counts_as_well(make_run):
    manifest = make_run(brighter, file_name=f"images/{SECOND}.jpeg")  # never opened
    assert made_again(manifest, FIRST) == [Reproduction(FIRST, Outcome.IDENTICAL)]


@pytest.mark.parametrize(
    "change", [{"seed": 5}, {"prompt": "another"}, {"wording": 2}, {"changes": ["strengthen class"]}]
)
def test_everything_that_a_row_records_goes_in(make_run, change):
    (found,) = made_again(make_run(**change), FIRST)
    same = "prompt" in change  # which simulated images do not look at
    assert (found.outcome is Outcome.IDENTICAL) is same


def brighter(pixels: np.ndarray) -> np.ndarray:
    changed = pixels.copy()
    changed[3, 5, 1] ^= 2
    changed[9, 9] ^= 1
    return changed


def test_a_different_image_is_told_by_how_much(make_run, monkeypatch):
    monkeypatch.setattr("balancer.runs.reproduction._version", lambda package: "0.1")
    (found,) = made_again(make_run(brighter), FIRST)
    assert found.outcome is Outcome.DIFFERENT
    assert found.detail == "4 of 12288 values differ, by 2 of 255 at most, 0.00041 on average"


def test_a_difference_under_other_versions_of_the_libraries_proves_nothing(make_run):
    (found,) = made_again(make_run(brighter), FIRST)
    assert found.outcome is Outcome.INCOMPARABLE
    assert found.detail.startswith("torch was 0.1, is ")
    assert "; 4 of 12288 values differ" in found.detail


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"device": "NVIDIA H200"}, "the device was NVIDIA H200, and is none here"),
        ({"model_revision": "f" * 40}, f"the revision of the weights was {'f' * 40}, and is none here"),
        ({"model": "org/sdxl"}, "it was made by org/sdxl, and run.json is about simulated"),
        ({"file_name": f"images/{SECOND}-gone.png"}, "no such file"),
    ],
)
def test_what_cannot_be_compared_is_told_in_one_line(make_run, changes, reason):
    by_id = {found.id: found for found in made_again(make_run(**changes))}
    assert by_id[FIRST].outcome is Outcome.INCOMPARABLE
    assert reason in by_id[FIRST].detail
    assert "\n" not in by_id[FIRST].detail
    assert by_id[SECOND].outcome is Outcome.IDENTICAL


def test_images_made_on_a_gpu_are_not_begun_on_a_cpu(make_run, monkeypatch):
    """Loading a large model where there is no GPU can exhaust memory."""
    manifest = make_run(device="NVIDIA H200", settings={"actors": {"kind": "models", "device": "cpu"}})
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(Generator, "__init__", lambda *told, **given: pytest.fail("a model was loaded"))
    (found,) = made_again(manifest, FIRST)
    assert found == Reproduction(FIRST, Outcome.INCOMPARABLE, "the device was NVIDIA H200, and is cpu here")


@pytest.mark.parametrize("other", ["revision", "sha256"])
def test_a_model_with_other_weights_than_the_run_had_is_not_loaded(make_run, monkeypatch, other):
    """A run may come from anywhere, and names its model itself."""
    here = weights.describe("embedded", None, None, "generator")
    revision = "f" * 40 if other == "revision" else here["revision"]
    settings = {"actors": {"kind": "models", "device": "cpu"}}
    manifest = make_run(device="cpu", settings=settings, model_revision=revision)
    manifest.run.models["generator"]["sha256"] = "0" * 64 if other == "sha256" else here["sha256"]
    monkeypatch.setattr(Generator, "__init__", lambda *told, **given: pytest.fail("a model was loaded"))
    (found,) = made_again(manifest, FIRST)
    assert found.outcome is Outcome.INCOMPARABLE
    assert found.detail.startswith(f"the {other} of the weights was ")


class Recording:
    """Counts what a generator is made with and asked for."""

    made: list[RecordingSpec] = []  # noqa: RUF012
    calls: list[tuple[int, float]] = []  # noqa: RUF012

    def __init__(self, spec: RecordingSpec) -> None:
        Recording.made.append(spec)
        self.batch_size = spec.batch_size

    def describe(self) -> dict[str, str]:
        return {"device": "none", "revision": ""}

    def generate(self, requests: list[Request], guidance: float) -> tuple[np.ndarray, None]:
        Recording.calls.append((len(requests), guidance))
        return np.zeros((len(requests), 64, 64, 3), np.uint8), None


@dataclass(frozen=True)
class RecordingSpec(GeneratorSpec):
    def load(self) -> Any:
        return Recording(self)


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> type[Recording]:
    Recording.made, Recording.calls = [], []

    def spec(config: Config, on_gpu: bool, uri: str | None = None) -> RecordingSpec:
        wanted = config.generation
        return RecordingSpec(
            model="embedded", width=wanted.width, height=wanted.height, steps=wanted.steps, batch_size=99
        )

    monkeypatch.setattr("actors.reproduce.generator_for", spec)
    return Recording


def test_rows_of_one_shape_share_batches_of_that_shape_and_of_one_guidance(make_run, recording):
    manifest = make_run()
    (one,) = actors.reproduce.rows_to_reproduce(manifest, [FIRST])
    rows = [one | {"guidance": guidance} for guidance in (7.5, 3.0, 7.5, 7.5, 7.5, 7.5)]
    rows += [one | {"batch_size": 2}] * 3
    assert len(list(actors.reproduce.reproduce(manifest, rows))) == 9
    assert [made.batch_size for made in recording.made] == [4, 2]
    assert {made.steps for made in recording.made} == {30}
    assert recording.calls == [(4, 7.5), (1, 7.5), (1, 3.0), (2, 7.5), (1, 7.5)]


def test_a_batch_that_had_to_be_halved_is_not_compared(make_run, recording, monkeypatch):
    def halve(self: Recording, requests: list[Request], guidance: float) -> tuple[np.ndarray, None]:
        self.batch_size = 2
        return np.zeros((len(requests), 64, 64, 3), np.uint8), None

    monkeypatch.setattr(Recording, "generate", halve)
    (found,) = made_again(make_run(), FIRST)
    assert found.outcome is Outcome.INCOMPARABLE
    assert "batches of 4 do not fit" in found.detail


# ---- comparing -----------------------------------------------------------------------------------


GREY = np.full((2, 3, 3), 100, np.uint8)


def test_pixels_decide_and_not_what_a_row_says_of_them():
    assert compare("x", GREY, GREY.copy(), "another hash").outcome is Outcome.IDENTICAL
    found = compare("x", GREY, GREY - np.uint8(100), pixel_sha256(GREY))
    assert found.detail == "18 of 18 values differ, by 100 of 255 at most, 1e+02 on average"


def test_differences_do_not_wrap_around():
    black, white = np.zeros_like(GREY), np.full_like(GREY, 255)
    assert "by 255 of 255" in compare("x", black, white, None).detail
    assert "by 255 of 255" in compare("x", white, black, None).detail


def test_images_of_different_sizes_are_different():
    assert compare("x", GREY, GREY[:1], None).detail == "3 x 2 pixels now, kept: 3 x 1"


def test_without_image_and_hash_there_is_nothing_to_compare_with():
    assert compare("x", GREY, None, None).outcome is Outcome.INCOMPARABLE
    assert compare("x", GREY, None, "another").outcome is Outcome.DIFFERENT


def test_other_versions_excuse_nothing_that_is_identical():
    same = Reproduction("x", Outcome.IDENTICAL)
    assert excused(same, {"torch": "0.1"}) == same


# ---- the command ---------------------------------------------------------------------------------


def command(manifest: Manifest, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["reproduce", manifest.uri, *arguments])


def test_several_ids_give_a_line_each(make_run):
    result = command(make_run(), SECOND, REJECTED)
    assert (result.exit_code, result.stdout.splitlines()) == (
        0, [f"{SECOND}: identical", f"{REJECTED}: identical", "2 images: 2 identical"],
    )  # fmt: skip


def test_with_all_only_those_are_listed_that_are_not_identical(make_run, monkeypatch):
    monkeypatch.setattr("balancer.runs.reproduction._version", lambda package: "0.1")
    result = command(make_run(brighter), "--all")
    assert result.exit_code == 1
    first, total = result.stdout.splitlines()
    assert first.startswith(f"{FIRST}: different: 4 of 12288 values")
    assert total == "2 images: 1 different, 1 identical"


def test_what_cannot_be_compared_is_exit_code_4(make_run):
    result = command(make_run(device="NVIDIA H200"), "--all")
    assert result.exit_code == 4
    assert f"{FIRST}: cannot be compared: the device was NVIDIA H200" in result.stdout


def test_json_has_every_image(make_run):
    told = json.loads(command(make_run(), "--all", "--json").stdout)
    assert told["counts"] == {"identical": 2}
    assert told["images"][0] == {"id": FIRST, "outcome": "identical", "detail": ""}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "give the ids of images, or --all"),
        ([FIRST, "--all"], "give the ids of images, or --all"),
        (["basic/dim/0009-1"], "no image 'basic/dim/0009-1'"),
        (["real/a.png"], "'real/a.png' is a real image"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(make_run, arguments, problem):
    result = command(make_run(), *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert problem in result.stderr.splitlines()[0]


def test_weights_that_are_missing_are_exit_code_4(make_run, tmp_path):
    missing = str(tmp_path / "no" / "model")
    settings = {"actors": {"kind": "models"}, "generation": {"model": missing} | SIZE}
    result = command(make_run(settings=settings, model=missing, device="cpu"), FIRST)
    assert result.exit_code == 4
    assert result.stderr.startswith("error: ")
    assert missing in result.stderr


# ---- lineage -------------------------------------------------------------------------------------


def test_lineage_says_where_an_image_comes_from(reference_run):
    manifest = open_manifest(reference_run)
    (kept,) = manifest.to_table(filter="slot = 'burnt/dim_ambient/severely_burnt/0000'").to_pylist()
    found = manifest.lineage(kept["id"])
    assert (found.source, found.split, found.class_name) == ("synthetic", "train", "burnt")
    assert found.facets == {"lighting": "dim_ambient", "burn_level": "severely_burnt"}
    assert (found.model, found.model_revision) == ("embedded", manifest.run.models["generator"]["revision"])
    assert found.prompt == kept["prompt"]
    assert (found.seed, found.attempt) == (kept["seed"], kept["attempt"])
    assert (found.guidance, found.steps, found.width) == (3.0, 10, 128)
    assert found.scores == kept["scores"]
    assert (found.device, found.batch_size) == ("cpu", 8)
    assert found.versions["torch"] == manifest.run.versions["torch"]
    assert (found.run_id, found.run_name, found.parent) == (manifest.run.run_id, "Rendered pizzas", None)
    assert found.generated_at is not None
    assert found.as_dict()["seed"] == str(kept["seed"])


def test_lineage_of_real_images_and_of_rejected_candidates(make_run):
    manifest = make_run()
    genuine = manifest.lineage("real/a.png")
    assert (genuine.source, genuine.model, genuine.scores, genuine.parent) == ("real", None, {}, None)
    assert manifest.lineage(REJECTED).reason == "lighting"


def test_lineage_goes_back_to_the_first_image(make_run):
    found = make_run(parent_id="real/a.png").lineage(FIRST)
    assert found.parent is not None
    assert (found.parent.id, found.parent.parent) == ("real/a.png", None)


def test_lineage_of_an_unknown_image_is_a_usage_error(make_run):
    with pytest.raises(UsageError, match="no image 'basic/dim/0009-1' in run run-1"):
        make_run().lineage("basic/dim/0009-1")


@pytest.mark.parametrize(
    ("parent", "problem"),
    [(FIRST, "was generated from it in turn"), ("real/x.png", "is not in the manifest")],
)
def test_a_lineage_that_leads_nowhere_is_a_manifest_error(make_run, parent, problem):
    with pytest.raises(ManifestError, match=problem):
        make_run(parent_id=parent).lineage(FIRST)


@pytest.mark.parametrize(
    "changes",
    [{"batch_size": 0}, {"batch_size": 2**31 - 1}, {"width": 16384}, {"width": -8}, {"steps": 2**31 - 1},
     {"guidance": float("nan")}, {"prompt": None}, {"seed": None}, {"negative_prompt": None},
     {"prompt": "x" * 10**6}, {"width": 256}, {"height": 4096}, {"steps": 1000}],
    ids=lambda changes: str(changes)[:30],
)  # fmt: skip
def test_a_row_with_what_no_config_allows_is_not_tried(changes):
    (name,) = changes
    told = row(FIRST.rpartition("-")[0]) | columns(FIRST) | changes
    problem = actors.reproduce._impossible(told, Config.model_validate(SMALL))
    assert problem.startswith(f"its row has {name} ")
    assert len(problem) < 500


def test_a_batch_that_cannot_fit_into_memory_is_not_tried(monkeypatch):
    images = row(FIRST.rpartition("-")[0]) | columns(FIRST) | {"batch_size": 256, "device": "cpu"}
    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(available=400 * 10**6))
    config = Config.model_validate(SMALL)
    problem = actors.reproduce._impossible(images, config)
    assert problem.startswith("a batch of 256 images of 64 x 64 pixels takes 524.3 MB of memory")
    assert actors.reproduce._impossible(images | {"batch_size": 100}, config) == ""
    assert actors.reproduce._impossible(images | {"device": "NVIDIA H200"}, config) == ""
