"""The real images as the verifier sees them: measured once, labelled by folder and metadata, not mixed up."""

from __future__ import annotations

import csv
import io
import pickle
import shutil
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pytest
from PIL import Image

from actors.real_images import (
    BATCH_IMAGES,
    MeasureCall,
    Measurements,
    RealImages,
    collect_examples,
    find_holdout_duplicates,
    list_references,
    load_calibration,
    measure_here,
    measure_real_images,
    real_facets,
    run_preflight,
)
from balancer.config.schema import Config
from balancer.dataset.audit import audit_dataset, audit_holdout
from balancer.errors import DatasetError, UsageError
from balancer.images import decode_image
from balancer.verification.calibration import write_calibration
from balancer.verification.verdict import ImageFlags, Measurement

CLASSES = {"cat": {"prompts": ["a cat"]}, "dog": {"prompts": ["a dog"]}}
LIGHT = {"classes": ["cat"], "values": {"day": {"prompts": ["day"]}, "night": {"prompts": ["night"]}}}
REAL = {"cat": 3, "dog": 2}
HELD_OUT = {"cat": 1, "dog": 1}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("BALANCER_CACHE", str(folder))
    return folder / "measured"


@pytest.fixture
def config(tmp_path) -> Config:
    for split, counts in (("train", REAL), ("holdout", HELD_OUT)):
        rows = []
        for name, count in counts.items():
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(count):
                file_name = f"{name}/{index}.png"
                seed = [len(split), len(name), index, sum(map(ord, name))]
                noise = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
                Image.fromarray(noise).save(tmp_path / split / file_name)
                rows.append({"file_name": file_name, "light": ["day", "", "dusk"][index]})
        with (tmp_path / split / "metadata.csv").open("w", newline="") as file:
            table = csv.DictWriter(file, ["file_name", "light"])
            table.writeheader()
            table.writerows(rows)
    return make_config(tmp_path)


def make_config(root, **verification) -> Config:
    return Config.model_validate(
        {
            "dataset": {"path": str(root / "train"), "holdout": str(root / "holdout")},
            "classes": CLASSES,
            "facets": {"light": LIGHT},
            "target": {"per_class": 5},
            "verification": verification,
        }
    )


class Eye:
    """A verifier that sees in an image what a function of its pixels says, and remembers how many it saw."""

    def __init__(
        self, see: Callable[[np.ndarray], float] = lambda pixels: float(pixels.mean() / 255)
    ) -> None:
        self.see = see
        self.calls: list[int] = []

    def __call__(self, calls: Iterable[MeasureCall]) -> Iterator[tuple[int, Measurements]]:
        for number, (files, max_pixels) in enumerate(calls):
            self.calls.append(len(files))
            yield number, [self.one(decode_image(data, max_pixels=max_pixels)) for data in files]

    def one(self, pixels: np.ndarray) -> Measurement:
        first = self.see(pixels)
        return Measurement(
            probabilities={
                "class": {"cat": first, "dog": 1 - first},
                "light": {"day": first, "night": 1 - first},
            },
            brightness=0.5,
            deviation=0.2,
            flags=ImageFlags(),
            phash="0" * 16,
            embedding=np.array([first, 0.5], "<f2").tobytes(),
        )


def measured(
    config: Config, eye: Callable[[Iterable[MeasureCall]], Iterable[tuple[int, Measurements]]]
) -> RealImages:
    return measure_real_images(config, audit_dataset(config), audit_holdout(config), eye)


def same(one: RealImages, other: RealImages) -> bool:
    return (
        one.ids == other.ids
        and np.array_equal(one.embeddings, other.embeddings)
        and all(
            np.array_equal(one.log_probabilities[name], of) for name, of in other.log_probabilities.items()
        )
    )


def never(calls: Iterable[MeasureCall]) -> Iterable[tuple[int, Measurements]]:
    raise AssertionError("an image that was measured before was measured again")


# ---- measuring once ----------------------------------------------------------------------------


def test_every_real_and_hold_out_image_is_measured(config):
    eye = Eye()
    found = measured(config, eye)
    assert found.ids == (
        "real/cat/0.png", "real/cat/1.png", "real/cat/2.png", "real/dog/0.png", "real/dog/1.png",
        "holdout/cat/0.png", "holdout/dog/0.png",
    )  # fmt: skip
    assert sum(eye.calls) == 7
    for row, image in enumerate(found.images):
        folder = config.dataset.path if found.ids[row].startswith("real/") else config.dataset.holdout
        mean = float(np.asarray(Image.open(f"{folder}/{image.file_name}")).mean() / 255)
        assert np.exp(found.log_probabilities["class"][row]) == pytest.approx([mean, 1 - mean])
        assert found.embeddings[row] == pytest.approx([mean, 0.5], abs=1e-3)


def test_results_may_come_back_in_any_order(config, monkeypatch):
    monkeypatch.setattr("actors.real_images.BATCH_IMAGES", 2)
    eye = Eye()
    expected = measured(config, eye)
    assert len(eye.calls) == 4
    shuffled = config.model_copy(update={"classes": config.classes | {"emu": config.classes["cat"]}})
    backwards = measured(shuffled, lambda calls: reversed([*_widened(calls)]))
    assert backwards.ids == expected.ids
    assert np.array_equal(backwards.embeddings, expected.embeddings)


def _widened(calls):
    """What an Eye sees, with a third class."""
    for number, measurements in Eye()(calls):
        for one in measurements:
            one.probabilities["class"]["emu"] = 0.0
        yield number, measurements


def test_what_was_measured_is_not_measured_again(config):
    first = measured(config, Eye())
    assert same(measured(config, never), first)


def test_a_new_image_alone_is_measured(config, tmp_path):
    measured(config, Eye())
    Image.new("RGB", (20, 20), "red").save(tmp_path / "train" / "dog" / "9.png")
    eye = Eye()
    found = measured(config, eye)
    assert eye.calls == [1]
    assert "real/dog/9.png" in found.ids


def test_an_image_is_known_by_its_bytes_not_by_its_name(config, tmp_path):
    measured(config, Eye())
    (tmp_path / "train" / "cat" / "0.png").rename(tmp_path / "train" / "dog" / "moved.png")
    found = measured(config, never)
    assert found.images[found.ids.index("real/dog/moved.png")].class_name == "dog"


def test_files_with_the_same_bytes_are_measured_once(config, tmp_path):
    (tmp_path / "train" / "cat" / "twin.png").write_bytes((tmp_path / "train" / "cat" / "0.png").read_bytes())
    eye = Eye()
    assert len(measured(config, eye).ids) == 8
    assert sum(eye.calls) == 7


def test_other_wordings_are_measured_anew_and_other_thresholds_are_not(config):
    measured(config, Eye())
    worded = config.model_dump()
    worded["classes"]["cat"]["labels"] = ["a tabby"]
    eye = Eye()
    measured(Config.model_validate(worded), eye)
    assert sum(eye.calls) == 7
    stricter = config.model_dump()
    stricter["verification"]["threshold"] = 0.9
    measured(Config.model_validate(stricter), never)


def test_what_was_seen_before_an_interruption_is_kept(config, monkeypatch):
    monkeypatch.setattr("actors.real_images.BATCH_IMAGES", 2)

    def interrupted(calls: Iterable[MeasureCall]) -> Iterator[tuple[int, Measurements]]:
        results = Eye()(calls)
        yield next(results)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured(config, interrupted)
    eye = Eye()
    measured(config, eye)
    assert sum(eye.calls) == 5


def _rewritten(path, **changes) -> None:
    with np.load(path) as stored:
        arrays = dict(stored)
    with path.open("wb") as file:
        np.savez(file, **(arrays | {name: change(arrays[name]) for name, change in changes.items()}))


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _pickled(path) -> None:
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("a pickle in the cache was loaded",))

    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|O", "fortran_order": False, "shape": (7,)})
    path.write_bytes(buffer.getvalue() + pickle.dumps(Trap()))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not an archive"),
        lambda path: path.write_bytes(path.read_bytes()[:-200]),
        lambda path: path.write_bytes(path.read_bytes()[:300] + b"\xff" * 40 + path.read_bytes()[340:]),
        lambda path: _rewritten(path, sha256=lambda of: of[:-1]),
        lambda path: _rewritten(path, embeddings=lambda of: of.astype("<f4")),
        lambda path: _rewritten(path, embeddings=lambda of: of.ravel()),
        lambda path: _rewritten(path, log_probabilities=lambda of: of[:, :-1]),
        lambda path: _rewritten(path, log_probabilities=lambda of: of * np.nan),
        lambda path: _rewritten(path, sha256=lambda of: of.astype(object)),
        lambda path: path.write_bytes(_npy(np.zeros(3))),
        _pickled,
    ],
    ids="empty text cut flipped rows dtype shape values nan objects array pickle".split(),
)  # fmt: skip
def test_a_damaged_cache_is_made_anew(config, cache, damage):
    first = measured(config, Eye())
    (path,) = cache.iterdir()
    damage(path)
    eye = Eye()
    assert same(measured(config, eye), first)
    assert sum(eye.calls) == 7
    assert same(measured(config, never), first)


def test_where_nothing_can_be_kept_images_are_measured_each_time(config, cache):
    cache.parent.mkdir()
    cache.write_text("in the way")
    for _ in range(2):
        eye = Eye()
        measured(config, eye)
        assert sum(eye.calls) == 7


def test_simulated_measurements_are_not_kept(config, cache):
    simulated = Config.model_validate(config.model_dump() | {"actors": {"kind": "simulated"}})
    measured(simulated, Eye())
    assert not cache.exists()


def test_an_image_that_changed_since_the_audit_is_named(config, tmp_path):
    audit = audit_dataset(config)
    Image.new("RGB", (8, 8)).save(tmp_path / "train" / "cat" / "1.png")
    with pytest.raises(DatasetError, match=r"cat/1\.png changed since it was audited"):
        measure_real_images(config, audit, None, Eye())


def test_an_image_that_went_since_the_audit_is_named(config, tmp_path):
    audit = audit_dataset(config)
    (tmp_path / "train" / "cat" / "1.png").unlink()
    with pytest.raises(DatasetError, match=r"cat/1\.png: no such file"):
        measure_real_images(config, audit, None, Eye())


def test_an_image_that_the_verifier_cannot_read_is_named(config):
    def blind(calls: Iterable[MeasureCall]) -> Iterator[tuple[int, Measurements]]:
        for number, (files, _) in enumerate(calls):
            yield number, ["out of memory while decoding it"] * len(files)

    with pytest.raises(DatasetError, match=r"cat/0\.png: out of memory while decoding it"):
        measured(config, blind)


def test_a_batch_holds_so_many_images_and_so_many_bytes(config, tmp_path, monkeypatch):
    for index in range(BATCH_IMAGES):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / "train" / "dog" / f"more{index}.png")
    eye = Eye()
    measured(config, eye)
    assert eye.calls == [BATCH_IMAGES, 7]
    monkeypatch.setattr("actors.real_images.BATCH_BYTES", 1)
    monkeypatch.setenv("BALANCER_CACHE", str(tmp_path / "other"))
    eye = Eye()
    measured(config, eye)
    assert set(eye.calls) == {1}


def test_a_dataset_without_images_needs_no_verifier(config, tmp_path):
    (tmp_path / "none" / "cat").mkdir(parents=True)
    (tmp_path / "none" / "dog").mkdir()
    empty = config.model_copy(
        update={
            "dataset": config.dataset.model_copy(update={"path": str(tmp_path / "none"), "holdout": None})
        }
    )
    found = measured(empty, never)
    assert (found.ids, found.log_probabilities["light"].shape) == ((), (0, 2))
    assert collect_examples(found, empty)["class"].counts == (0, 0)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_verifier_that_gives_no_number_is_taken_to_know_nothing(config, wrong):
    found = measured(config, Eye(lambda pixels: wrong))
    assert np.exp(found.log_probabilities["class"]) == pytest.approx(0.5)


# ---- what is made of them ----------------------------------------------------------------------


def test_examples_are_labelled_by_folder_and_metadata(config):
    examples = collect_examples(measured(config, Eye()), config)
    assert examples["class"].counts == (4, 3)
    # A facet counts where it applies, and where its value is one of the config's.
    assert examples["light"].counts == (2, 0)
    assert examples["light"].log_probabilities.shape == (2, 2)


def test_facets_are_those_known_or_seen_surely_enough_and_of_the_dataset_alone(config):
    found = measured(config, Eye(lambda pixels: 0.1))
    assert real_facets(found, config) == {
        "cat": [{"light": "day"}, {"light": "night"}, {}],
        "dog": [{}, {}],
    }
    unsure = measured(make_config_like(config, threshold=0.95), never)
    assert real_facets(unsure, make_config_like(config, threshold=0.95))["cat"][1] == {}


def test_facets_of_validation_and_test_images_are_not_counted(config):
    found = measured(config, Eye(lambda pixels: 0.1))
    splits = {"cat/0.png": "test", "cat/1.png": "validation", "cat/2.png": "train", "dog/1.png": "test"}
    assert real_facets(found, config, splits) == {"cat": [{}], "dog": [{}]}


def test_real_images_that_the_hold_out_shows_are_found_with_what_they_copy(config, tmp_path):
    shutil.copy(tmp_path / "holdout" / "dog" / "0.png", tmp_path / "train" / "cat" / "7.png")
    found = find_holdout_duplicates(measured(config, Eye()), config)
    assert {name: (near.id, near.same_pixels) for name, near in found.items()} == {
        "real/cat/7.png": ("holdout/dog/0.png", True)
    }


def make_config_like(config: Config, **verification) -> Config:
    return Config.model_validate(config.model_dump() | {"verification": verification})


def test_a_facet_the_verifier_cannot_judge_is_not_measured(config):
    unjudged = make_config_like(config, unjudged=["light"])
    found = measured(unjudged, Eye(lambda pixels: 0.1))
    assert real_facets(found, unjudged)["cat"] == [{"light": "day"}, {}, {}]


def test_measured_facets_are_taken_at_their_calibrated_probability(config, tmp_path, monkeypatch):
    found = measured(config, Eye(lambda pixels: 0.1))
    monkeypatch.setattr("actors.real_images.load_temperatures", lambda config: {"light": 10.0})
    assert real_facets(found, config)["cat"] == [{"light": "day"}, {}, {}]


def test_references_carry_what_copies_are_found_by(config):
    found = measured(config, Eye())
    references = list_references(found)
    assert [reference.id for reference in references] == list(found.ids)
    for reference, image, embedding in zip(references, found.images, found.embeddings, strict=True):
        assert (reference.phash, reference.pixel_sha256) == (image.phash, image.pixel_sha256)
        assert reference.embedding == embedding.tobytes()
        assert len(reference.phash) == 16
    assert references[0].embedding == found.embeddings_by_id()["real/cat/0.png"]


# ---- the hold-out ------------------------------------------------------------------------------


def test_a_hold_out_class_that_the_config_lacks_is_refused(config, tmp_path):
    (tmp_path / "holdout" / "cow").mkdir()
    with pytest.raises(DatasetError, match="'cow' is not a class of the config"):
        audit_holdout(config)


def test_without_a_hold_out_there_is_none(config):
    dataset = config.dataset.model_copy(update={"holdout": None})
    assert audit_holdout(config.model_copy(update={"dataset": dataset})) is None


def test_the_table_of_the_hold_out_is_its_own(config, tmp_path):
    (tmp_path / "train" / "metadata.csv").rename(tmp_path / "elsewhere.csv")
    dataset = config.dataset.model_copy(update={"metadata": str(tmp_path / "elsewhere.csv")})
    found = config.model_copy(update={"dataset": dataset})
    (tmp_path / "holdout" / "metadata.csv").unlink()
    assert audit_dataset(found).images[0].facets == {"light": "day"}
    assert all(image.facets == {} for image in audit_holdout(found).images)


def test_the_hold_out_of_the_sample_dataset_has_twenty_images_of_every_class(project, monkeypatch):
    from balancer.config.load import load_config

    demo = load_config(project / "configs/demo.yaml", ["dataset.holdout=sample"])
    found = audit_holdout(demo)
    assert found.counts == dict.fromkeys(demo.classes, 20)
    assert found.path.name == "holdout"


# ---- with the embedded verifier ----------------------------------------------------------------


@pytest.fixture
def pizzas(project, tmp_path, monkeypatch):
    """The demo, with six images of the sample dataset."""
    from balancer.config.load import load_config
    from balancer.dataset.sample import render

    for split in ("train", "holdout"):
        for class_name in ("basic", "segment"):
            (tmp_path / "few" / split / class_name).mkdir(parents=True)
            for seed in range(2 if split == "train" else 1):
                picture = render(class_name, "dim_ambient", None, 2**44 + seed)
                Image.fromarray(picture).save(tmp_path / "few" / split / class_name / f"{seed}.png")
    places = [
        f"dataset.{key}={tmp_path / 'few' / name}"
        for key, name in (("path", "train"), ("holdout", "holdout"))
    ]
    return lambda *overrides: load_config(project / "configs/demo.yaml", [*places, *overrides])


def test_the_embedded_verifier_is_loaded_once_and_then_not_needed(pizzas, monkeypatch):
    config = pizzas()
    first = measure_here(config, audit_dataset(config), audit_holdout(config))
    examples = collect_examples(first, config)["class"]
    assert (examples.log_probabilities.argmax(axis=1) == examples.labels).all()
    monkeypatch.setattr("actors.models.verifier.Verifier", never)
    assert same(measure_here(config, audit_dataset(config), audit_holdout(config)), first)


def test_a_calibration_for_other_weights_is_refused_before_anything_is_loaded(pizzas, tmp_path):
    from balancer.verification.calibration import calibration_document, fit_property

    config = pizzas()
    found = measure_here(config, audit_dataset(config), audit_holdout(config))
    fitted = {name: fit_property(of, 1) for name, of in collect_examples(found, config).items()}
    for weights in ("other", "same"):
        identity = "0" * 40 if weights == "other" else _embedded_weights()
        document = calibration_document("embedded", identity, config.properties(), fitted)
        write_calibration(tmp_path / f"{weights}.json", document)
    with pytest.raises(UsageError, match="made for the verifier"):
        load_calibration(pizzas(f"verification.calibration={tmp_path / 'other.json'}"))
    assert load_calibration(pizzas(f"verification.calibration={tmp_path / 'same.json'}")) is not None
    assert load_calibration(config) is None


def _embedded_weights() -> str:
    from actors.weights import resolve as weights

    return weights.fingerprint("embedded", None, "verifier")


def test_a_picture_in_the_wrong_folder_is_named_by_the_pre_flight(pizzas, tmp_path):
    from balancer.dataset.sample import render

    wrong = tmp_path / "few" / "train" / "basic" / "wrong.png"
    Image.fromarray(render("segment", "dim_ambient", None, 2**45)).save(wrong)
    config = pizzas("verification.min_examples=2")
    measured_ = measure_here(config, audit_dataset(config), audit_holdout(config))
    [issue] = run_preflight(measured_, config).label_issues
    assert (issue.id, issue.class_name, issue.looks_like) == ("real/basic/wrong.png", "basic", "segment")
    unjudged = pizzas("verification.min_examples=2", "verification.unjudged=[class, lighting, burn_level]")
    assert run_preflight(measured_, unjudged).label_issues == ()
