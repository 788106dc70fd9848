"""Which labelled images heads learn from, and what is kept of it."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from actors import labelled
from actors.domain import study
from actors.heads import judge_real_images, study_heads
from actors.labelled import VARIATIONS, Looking
from actors.real_images import collect_examples, measure_real_images, real_facets, run_preflight
from balancer.config.schema import Config
from balancer.dataset.audit import audit_dataset, audit_holdout
from balancer.dataset.splits import assign_splits
from balancer.images import decode_image
from balancer.verification.off_domain import KINDS, SeenImages, SeenReal
from balancer.verification.verdict import ImageFlags, Measurement

CLASSES = ("cat", "dog")
LIGHTS = ("day", "night")
TRAINING, HELD_OUT = 24, 8
COPY = "dog/9.png"
"""In both parts of the dataset."""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("BALANCER_CACHE", str(folder))
    return folder / "heads"


def picture(part, name, index):
    """Cats are red; what is lit by day is bright."""
    noise = np.random.default_rng([len(part), sum(map(ord, name)), index]).integers(0, 100, (16, 16, 3))
    noise[..., 0] += 60 * (name == "cat")
    return Image.fromarray((noise + 90 * (index % 2 == 0)).astype(np.uint8))


@pytest.fixture
def config(tmp_path) -> Config:
    for part, count in (("train", TRAINING), ("holdout", HELD_OUT)):
        rows = []
        for name in CLASSES:
            (tmp_path / part / name).mkdir(parents=True)
            for index in range(count):
                picture(part, name, index).save(tmp_path / part / name / f"{index}.png")
                rows.append([f"{name}/{index}.png", LIGHTS[index % 2]])
        with (tmp_path / part / "metadata.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["file_name", "light"], *rows])
    return make_config(tmp_path)


def make_config(root, **verification) -> Config:
    return Config.model_validate(
        {
            "dataset": {"path": str(root / "train"), "holdout": str(root / "holdout")},
            "classes": {name: {"prompts": [name]} for name in CLASSES},
            "facets": {"light": {"values": {name: {"prompts": [name]} for name in LIGHTS}}},
            "target": {"per_class": 60},
            "verification": {"min_auc": 0.9, **verification},
        }
    )


class Looker:
    """A verifier whose words know light but no class, and whose features know both."""

    def __init__(self):
        self.files: Counter[bytes] = Counter()
        self.variations: Counter[int] = Counter()
        self.heads: set[str] = set()

    def __call__(self, method, calls):
        return [(number, getattr(self, method)(*arguments)) for number, arguments in enumerate(calls)]

    def measure(self, calls):
        return [(number, [self.one(data) for data in files]) for number, (files, _) in enumerate(calls)]

    def one(self, data):
        pixels = decode_image(data, max_pixels=1000)
        day = 0.999 if pixels[..., 1].mean() > 90 else 0.001
        cat = 0.5 + (int(pixels.sum()) % 7 - 3) / 100
        return Measurement(
            probabilities={
                "class": {"cat": cat, "dog": 1 - cat},
                "light": {"day": day, "night": 1 - day},
            },
            brightness=0.5,
            deviation=0.2,
            flags=ImageFlags(),
            phash=hashlib.sha256(data).hexdigest()[:16],
            embedding=np.random.default_rng(list(data[-40:])).normal(0, 1, 8).astype("<f2").tobytes(),
            pixel_sha256=hashlib.sha256(pixels.tobytes()).hexdigest(),
        )

    def study_files(self, files, max_pixels, variations, seed, kinds):
        self.files.update(files)
        self.variations[variations] += len(files)
        seen = []
        for data in files:
            colour = decode_image(data, max_pixels=1000).mean(axis=(0, 1)).astype(np.float32) / 40
            numbers = {
                kind: np.random.default_rng([number, *data[-40:]]).normal(0, 1, (1 + variations, 6))
                for number, kind in enumerate(KINDS)
            }
            seen.append(SeenReal(numbers, 0.9, {"final": colour} if kinds else {}))
        return seen

    def challenge(self, kind, count, seed, files, labels, max_pixels, heads):
        self.heads |= heads.keys()
        values, numbers = np.full((count, 2), 0.5), np.full(count, 0.5)
        noise = {each: np.full((count, 6), 9.0) for each in KINDS}
        return SeenImages(noise, {"class": values, "light": values}, numbers, numbers, numbers)


def look(config, looker=None, splits=None) -> Looking:
    looker = looker or Looker()
    audit, holdout = audit_dataset(config), audit_holdout(config)
    measured = measure_real_images(config, audit, holdout, looker.measure)
    return Looking(config, audit, holdout, measured, looker, splits or assign_splits(audit, config))


def never(method, calls):
    raise AssertionError("the verifier was asked again")


def may_fit(looking: Looking) -> set[str]:
    images = looking.labelled_images()
    ids = [looking.measured.ids[each.row] for each in looking.examples]
    return {name for name, allowed in zip(ids, images.may_fit, strict=True) if allowed}


def test_heads_learn_from_training_images_alone(config):
    looking = look(config)
    assert len(looking.examples) == 2 * (TRAINING + HELD_OUT)
    assert may_fit(looking) == {f"real/{name}/{index}.png" for name in CLASSES for index in range(TRAINING)}


def test_a_training_image_that_the_hold_out_shows_as_well_is_not_learned_from(config, tmp_path):
    (tmp_path / "train" / COPY).write_bytes((tmp_path / "holdout/dog/3.png").read_bytes())
    assert f"real/{COPY}" not in may_fit(look(config))


def test_nor_if_the_hold_out_has_it_beyond_those_that_are_looked_at(config, tmp_path, monkeypatch):
    (tmp_path / "train" / COPY).write_bytes((tmp_path / "holdout/dog/3.png").read_bytes())
    looking = look(config)
    shown = [each for each in looking.examples if looking.measured.ids[each.row] != "holdout/dog/3.png"]
    looking.__dict__["examples"] = shown
    assert f"real/{COPY}" not in may_fit(looking)


def test_images_of_validation_and_test_are_not_learned_from(config):
    audit = audit_dataset(config)
    splits = assign_splits(audit, config) | {"cat/1.png": "validation", "cat/2.png": "test"}
    learned = may_fit(look(config, splits=splits))
    assert len(learned) == 2 * TRAINING - 2
    assert learned.isdisjoint({"real/cat/1.png", "real/cat/2.png"})


def test_of_many_images_those_of_rare_values_are_all_looked_at(config, monkeypatch, tmp_path):
    table = tmp_path / "train/metadata.csv"
    lines = table.read_text().replace("night", "day").replace("dog/7.png,day", "dog/7.png,night")
    table.write_text(lines)
    monkeypatch.setattr(labelled, "MAX_EXAMPLES", 20)
    looking = look(config.model_copy(update={"dataset": config.dataset.model_copy(update={"holdout": None})}))
    labels = looking.labelled_images().labels
    assert np.bincount(labels["light"]).tolist() == [19, 1]
    assert min(np.bincount(labels["class"])) >= 9


def test_a_property_that_words_do_not_tell_is_proven_with_its_head(config):
    looking = look(config)
    assert "class" in {each.property_ for each in run_preflight(looking.measured, config).blocking}
    heads = study_heads(looking)
    assert heads.files.keys() == {"class"}
    judged = judge_real_images(looking, heads)
    assert not run_preflight(judged, config).blocking
    assert judged.log_probabilities["light"] is looking.measured.log_probabilities["light"]
    assert looking.measured.by_heads == frozenset()


def test_a_calibration_of_the_words_does_not_change_what_a_head_says(config, monkeypatch):
    monkeypatch.setattr("actors.real_images.load_temperatures", lambda _: {"class": 9.0, "light": 2.0})
    looking = look(config)
    assert judge_real_images(looking, study_heads(looking)).temperatures(config) == {"light": 2.0}


def test_what_no_head_has_looked_at_proves_nothing(config, monkeypatch):
    monkeypatch.setattr(labelled, "MAX_EXAMPLES", 40)
    looking = look(config)
    judged = judge_real_images(looking, study_heads(looking))
    examples = collect_examples(judged, config)
    assert len(examples["class"].labels) == 40
    assert len(examples["light"].labels) == len(judged.images) == 64


def test_facets_of_real_images_are_read_as_a_head_judges_them(config):
    config = config.model_copy(
        update={"verification": config.verification.model_copy(update={"threshold": 0.5})}
    )
    looking = look(config)
    heads = study_heads(looking)
    values = real_facets(judge_real_images(looking, heads), config)
    assert {name: len(rows) for name, rows in values.items()} == dict.fromkeys(CLASSES, TRAINING)


def test_an_image_is_looked_at_once_whoever_asks(config):
    looker = Looker()
    looking = look(config, looker)
    study(looking, study_heads(looking))
    assert set(looker.files.values()) == {1}
    assert looker.variations == {VARIATIONS: 64}
    assert looker.heads == {"class"}


def test_images_beyond_those_that_are_compared_are_looked_at_without_variations(config, monkeypatch):
    monkeypatch.setattr(labelled, "MAX_COMPARED", 30)
    looker = Looker()
    study_heads(look(config, looker))
    assert looker.variations == {VARIATIONS: 30, 0: 34}


def test_heads_work_without_typicality(config, tmp_path):
    looker = Looker()
    looking = look(make_config(tmp_path, typicality="never"), looker)
    heads = study_heads(looking)
    assert heads.files.keys() == {"class"}
    assert study(looking, heads).typicality is None
    assert looker.variations == {0: 64}


def test_the_result_is_kept(config):
    first = study_heads(look(config))
    looking = look(config, Looker())
    looking.call_all = never
    again = study_heads(looking)
    assert (again.as_dict(), again.files) == (first.as_dict(), first.files)
    assert np.array_equal(again.judged["class"], first.judged["class"])


def test_a_damaged_file_counts_as_missing(config, cache):
    first = study_heads(look(config))
    [path] = cache.iterdir()
    whole = path.read_bytes()
    judged = whole.index(b'"judged"')
    wrong = [
        whole.replace(b'"taken": true', b'"taken": 1'),
        whole.replace(b'"words_auc"', b'"auc_words"'),
        whole.replace(b'"class": "', b'"class": "AA', 1),
        whole[: judged + 30] + b"////////////" + whole[judged + 42 :],
    ]
    for damaged in (b"", b"{", whole[:-100], *wrong):
        assert damaged != whole
        path.write_bytes(damaged)
        assert study_heads(look(config)).files == first.files


@pytest.mark.parametrize(
    "change",
    [{"heads": "always"}, {"min_examples": 6}, {"unjudged": ["light"]}, {"copies": {"max_distance": 3}}],
)
def test_other_settings_are_fitted_anew(config, tmp_path, change):
    study_heads(look(config))
    looking = look(make_config(tmp_path, **change))
    looking.call_all = never
    with pytest.raises(AssertionError, match="asked again"):
        study_heads(looking)


def test_other_heads_are_challenged_anew(config, tmp_path):
    looking = look(config)
    study(looking, study_heads(looking))
    looker = Looker()
    looking = look(make_config(tmp_path, heads="never"), looker)
    study(looking, study_heads(looking))
    assert looker.files  # so the kept result of the other heads did not count
    assert looker.heads == set()
