"""Every reason for which an image is rejected, brought about by real models in a real run."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from actors.run import run
from balancer import open_manifest
from balancer.config.load import load_config
from balancer.dataset.audit import find_dataset

pytestmark = pytest.mark.usefixtures("all_here")

EMBEDDED = Path("balancer/embedded/generator")

SLOTS = 4


SMALL = [
    "generation.batch_size=4",
    "actors={generators: 1, device: cpu}",
    "attempts={max: 1, give_up_below: 0}",
    "output.commit_seconds=0.01",
]


def make_rows(project, out, *overrides, limit=SLOTS):
    """Run the first slots of the demo into `out`, one attempt each; the rows of the candidates by id."""
    run(load_config(project / "configs/demo.yaml", [*SMALL, *overrides]), out, limit=limit)
    table = open_manifest(out).to_table(status="all", filter="source = 'synthetic'")
    assert table.num_rows == limit or limit is None
    return {row["id"]: row for row in table.to_pylist()}


@pytest.fixture
def judged(project, tmp_path):
    return functools.partial(make_rows, project, tmp_path / "run")


@pytest.fixture
def changed_generator(project, tmp_path):
    """The embedded generator with one tensor changed."""

    def change(component, tensor, alter):
        folder = tmp_path / "generator"
        shutil.copytree(project / EMBEDDED, folder)
        path = folder / component / "diffusion_pytorch_model.safetensors"
        tensors = load_file(path)
        alter(tensors[tensor])
        save_file(tensors, path, metadata={"format": "pt"})
        return f"generation.model={folder}"

    return change


ANY_DOMAIN = ("verification.unjudged=[off_domain]", "verification.typicality=never")
"""Spares the look at variations of the labelled images, where the domain is not what a test is about."""


def reasons(rows):
    return {row["reason"] for row in rows.values()}


def test_an_image_that_shows_another_class_is_rejected_for_its_class(judged):
    asked = "classes.combined={prompts: [a single slice of pizza], labels: [a pizza with many toppings]}"
    rows = [row for row in judged(asked, *ANY_DOMAIN, limit=2 * SLOTS).values() if row["class"] == "combined"]
    assert [row["reason"] for row in rows] == ["class", "class"]
    assert all(row["score"] == row["scores"]["class"] < 0.6 for row in rows)


def test_a_decoder_that_gives_one_colour_makes_blank_images(judged, changed_generator):
    rows = judged(changed_generator("vae", "decoder.layers.15.weight", lambda tensor: tensor.zero_()))
    assert reasons(rows) == {"blank"}
    assert all(row["deviation"] < 0.005 for row in rows.values())


def test_latents_that_are_no_numbers_are_rejected_as_such(judged, changed_generator):
    rows = judged(changed_generator("unet", "conv_out.bias", lambda tensor: tensor.fill_(float("nan"))))
    assert reasons(rows) == {"not_finite"}
    assert all(row["nonfinite"] > 0 for row in rows.values())


@pytest.mark.parametrize(
    ("limits", "reason"), [("[0.0, 0.1]", "overexposed"), ("[0.95, 1.0]", "underexposed")]
)
def test_an_image_is_over_or_underexposed_by_what_its_lighting_allows(judged, limits, reason):
    rows = judged(f"facets.lighting.values.overhead_harsh.brightness={limits}").values()
    harsh = [row for row in rows if row["lighting"] == "overhead_harsh"]
    assert 0 < len(harsh) < SLOTS
    assert all((row["reason"] == reason) == (row in harsh) for row in rows)
    low, high = (float(limit) for limit in limits.strip("[]").split(","))
    assert not any(low <= row["brightness"] <= high for row in harsh)


def wrong_scale(folder):
    """Latents reach the decoder four times too strong."""
    path = folder / "vae/config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"scaling_factor": config["scaling_factor"] / 4}))


def constant_latents(folder):
    """Every position of the latents is drawn to the same value."""
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["conv_out.weight"].zero_()
    tensors["conv_out.bias"].fill_(3.0)
    save_file(tensors, path, metadata={"format": "pt"})


def nothing_but_noise(folder):
    """The latents stay as noisy as they begin."""
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["conv_out.weight"].zero_()
    tensors["conv_out.bias"].zero_()
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("spoil", [wrong_scale, constant_latents, nothing_but_noise])
def test_a_run_with_a_broken_generator_ends_short_as_its_images_are_of_no_class(project, tmp_path, spoil):
    folder = tmp_path / "generator"
    shutil.copytree(project / EMBEDDED, folder)
    spoil(folder)
    settings = [
        *SMALL,
        f"generation.model={folder}",
        "target.per_class=4",
    ]
    result = run(load_config(project / "configs/demo.yaml", settings), tmp_path / "run")
    assert (result.state, result.accepted, result.short) == ("short", 0, 16)
    assert result.rejected_by_reason == {"off_domain": 16}
    rows = open_manifest(tmp_path / "run").to_table(status="all", filter="source = 'synthetic'")
    assert all(row["typicality"] <= 0.0125 or row["domain_score"] <= 0.05 for row in rows.to_pylist())


# ---- copies --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made_before(project, tmp_path_factory):
    """A picture that the demo accepts, and its id; of a class whose first slot is the same with another real
    image of `basic`."""
    out = tmp_path_factory.mktemp("before") / "run"
    rows = make_rows(project, out).values()
    row = next(row for row in rows if row["reason"] is None and row["class"] != "combined")
    return row["id"], out / row["file_name"]


@pytest.fixture
def with_picture(tmp_path):
    """The override for a copy of a part of the sample dataset with one more picture in it, as a basic pizza:
    a copy is one under any label."""

    def add(key, split, picture, name):
        folder = tmp_path / split
        shutil.copytree(find_dataset("sample", split), folder)
        with Image.open(picture) as image:
            image.save(folder / "basic" / name, **({"quality": 90} if name.endswith(".jpg") else {}))
        return f"dataset.{key}={folder}"

    return add


@pytest.mark.parametrize(
    ("key", "split", "known"),
    [("holdout", "holdout", "holdout/basic/known.jpg"), ("path", "train", "real/basic/known.jpg")],
)
def test_a_candidate_like_a_known_picture_is_a_near_copy_of_it(
    judged, made_before, with_picture, key, split, known
):
    made, picture = made_before
    row = judged(with_picture(key, split, picture, "known.jpg"), *ANY_DOMAIN)[made]
    assert (row["reason"], row["nearest_id"]) == ("near_copy", known)
    assert row["nearest_distance"] <= 4
    assert 0.95 <= row["nearest_similarity"] <= 1


def test_a_candidate_with_the_pixels_of_a_known_picture_is_a_duplicate(judged, made_before, with_picture):
    made, picture = made_before
    row = judged(with_picture("holdout", "holdout", picture, "known.png"), *ANY_DOMAIN)[made]
    assert (row["reason"], row["nearest_id"]) == ("duplicate", "holdout/basic/known.png")


def test_of_accepted_images_that_are_alike_the_first_stays(judged, tmp_path):
    (tmp_path / "empty" / "combined").mkdir(parents=True)
    nothing_known = [f"dataset.path={tmp_path / 'empty'}", "dataset.holdout=null"]
    unproven = "verification.unjudged=[class, lighting, burn_level]"
    everything_is_alike = "verification.copies={max_distance: 64, min_similarity: -1}"
    few = "target.per_class=1"  # without a limit: accepted ones are compared when all are there
    rows = judged(*nothing_known, unproven, everything_is_alike, few, limit=None)
    first, *others = rows.values()
    assert len(others) == 5
    assert (first["reason"], first["status"]) == (None, "accepted")
    assert {(row["reason"], row["status"]) for row in others} == {("near_copy", "rejected")}
    assert {row["nearest_id"] for row in others} == {first["id"]}
