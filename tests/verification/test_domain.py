"""What a verifier is shown so that it can say no: which images, how often, and what is kept of it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from actors import labelled
from actors.domain import IMAGES_PER_KIND, SOURCES, study
from actors.heads import study_heads
from actors.labelled import VARIATIONS, Looking, call_here
from actors.real_images import measure_here, measure_real_images
from balancer.config.load import load_config
from balancer.config.schema import Config, FallbackConfig
from balancer.dataset.audit import audit_dataset, audit_holdout
from balancer.errors import DatasetError
from balancer.verification.challenges import BLENDED, FROM_IMAGES, FROM_NOTHING
from balancer.verification.head_choice import Heads
from balancer.verification.off_domain import KINDS, SeenImages, SeenReal
from tests.dataset.test_real_images import Eye

HELD_OUT = 12


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("BALANCER_CACHE", str(folder))
    return folder / "off_domain"


@pytest.fixture
def config(tmp_path) -> Config:
    """24 training images of one class, 12 of each as hold-out."""
    counts = {"train": {"cat": 24, "dog": 0}, "holdout": {"cat": HELD_OUT, "dog": HELD_OUT}}
    for split, classes in counts.items():
        for name, count in classes.items():
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(count):
                seed = [len(split), sum(map(ord, name)), index]
                noise = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
                Image.fromarray(noise).save(tmp_path / split / name / f"{index}.png")
    return make_config(tmp_path)


def make_config(root, **verification) -> Config:
    return Config.model_validate(
        {
            "dataset": {"path": str(root / "train"), "holdout": str(root / "holdout")},
            "classes": {"cat": {"prompts": ["a cat"]}, "dog": {"prompts": ["a dog"]}},
            "facets": {"light": {"values": {"day": {"prompts": ["day"]}, "night": {"prompts": ["night"]}}}},
            "target": {"per_class": 30},
            "verification": verification,
        }
    )


class Looker:
    """Verifiers that see noise in everything; it remembers what it was shown."""

    def __init__(self):
        self.files: list[bytes] = []
        self.variations: set[int] = set()
        self.challenges: dict[str, list[str]] = {}

    def __call__(self, method, calls):
        results = [(number, getattr(self, method)(*arguments)) for number, arguments in enumerate(calls)]
        return reversed(results)  # in any order

    def study_files(self, files, max_pixels, variations, seed, kinds):
        self.files += files
        self.variations.add(variations)
        return [SeenReal(noise(1 + variations, len(data)), 0.9) for data in files]

    def challenge(self, kind, count, seed, files, labels, max_pixels, heads):
        assert len(files) == len(labels)
        self.challenges[kind] = labels
        values = np.full((count, 2), 0.5)
        numbers = np.full(count, 0.5)
        return SeenImages(noise(count, 1), {"class": values, "light": values}, numbers, numbers, numbers)


def noise(rows, seed):
    return {
        kind: np.random.default_rng((seed, number)).normal(0, 1, (rows, 6)).astype(np.float32)
        for number, kind in enumerate(KINDS)
    }


def run_study(config, call_all):
    audit, holdout = audit_dataset(config), audit_holdout(config)
    measured = measure_real_images(config, audit, holdout, Eye())
    return study(Looking(config, audit, holdout, measured, call_all), Heads({}))


def never(method, calls):
    raise AssertionError("the verifier was asked again")


def test_all_labelled_images_are_compared_those_of_the_hold_out_as_well(config):
    looker = Looker()
    proof = run_study(config, looker).proof
    assert len(looker.files) == proof.images == 48
    assert proof.by_class == {"cat": 36, "dog": 12}
    assert looker.variations == {VARIATIONS}


def test_of_many_images_as_many_of_each_class_are_compared(config, monkeypatch):
    monkeypatch.setattr(labelled, "MAX_COMPARED", 30)
    assert run_study(config, Looker()).proof.by_class == {"cat": 18, "dog": 12}


def test_challenges_of_every_kind_are_made_and_those_from_images_of_all_classes(config):
    looker = Looker()
    proof = run_study(config, looker).proof
    assert {each.kind: each.images for each in proof.challenges} == dict.fromkeys(
        (*FROM_NOTHING, *FROM_IMAGES), IMAGES_PER_KIND
    )
    for kind, labels in looker.challenges.items():
        expected = {"cat": SOURCES // 2, "dog": SOURCES // 2} if kind in FROM_IMAGES else {}
        assert Counter(labels) == expected


def test_without_images_only_challenges_from_nothing_are_made(tmp_path):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    config = make_config(tmp_path).model_copy(
        update={"dataset": make_config(tmp_path).dataset.model_copy(update={"holdout": None})}
    )
    looker = Looker()
    assert run_study(config, looker).proof.images == 0
    assert looker.challenges.keys() == FROM_NOTHING.keys()


def test_no_variations_are_made_for_typicality_that_nobody_wants(config, tmp_path):
    looker = Looker()
    run_study(make_config(tmp_path, typicality="never"), looker)
    assert looker.variations == {0}


def test_the_result_is_kept(config):
    first = run_study(config, Looker())
    assert run_study(config, never) == first


def test_a_damaged_file_counts_as_missing(config, cache):
    first = run_study(config, Looker())
    [path] = cache.iterdir()
    whole = path.read_bytes()
    wrong = [
        changed
        for old, new in (
            (b"A", b"B"),
            (b'"accepted": 0', b'"accepted": "x"'),
            (b'"min_typicality"', b'"min"'),
        )
        if (changed := whole.replace(old, new)) != whole
    ]
    assert len(wrong) == 3
    for damaged in (b"", b"{", whole[:-100], *wrong):
        path.write_bytes(damaged)
        assert run_study(config, Looker()) == first


@pytest.mark.parametrize(
    "change", [{"threshold": 0.7}, {"max_true_lost": 0.1}, {"negatives": ["a fox"]}, {"unjudged": ["light"]}]
)
def test_other_settings_are_proven_anew(config, tmp_path, change):
    run_study(config, Looker())
    with pytest.raises(AssertionError, match="asked again"):
        run_study(make_config(tmp_path, **change), never)


def test_a_lower_threshold_of_any_attempt_is_proven_anew(config):
    run_study(config, Looker())
    attempts = config.attempts.model_copy(update={"fallback": FallbackConfig(threshold=0.4)})
    with pytest.raises(AssertionError, match="asked again"):
        run_study(config.model_copy(update={"attempts": attempts}), never)


def test_settings_that_change_nothing_are_not(config, tmp_path):
    run_study(config, Looker())
    run_study(make_config(tmp_path, max_challenge_accepted=1.0), never)


def test_an_image_that_changed_since_the_audit_is_an_error(config, tmp_path):
    audit, holdout = audit_dataset(config), audit_holdout(config)
    measured = measure_real_images(config, audit, holdout, Eye())
    Image.new("RGB", (16, 16)).save(tmp_path / "train" / "cat" / "0.png")
    with pytest.raises(DatasetError, match=r"0\.png changed since it was audited"):
        study(Looking(config, audit, holdout, measured, Looker()), Heads({}))


def test_an_image_that_a_verifier_cannot_read_is_an_error(config):
    looker = Looker()
    looker.study_files = lambda files, *_: ["too large"] * len(files)
    with pytest.raises(DatasetError, match=r"png: too large"):
        run_study(config, looker)


def test_the_embedded_verifier_says_no_on_the_sample_dataset(project, monkeypatch):
    config = load_config(project / "configs/demo.yaml")
    audit, holdout = audit_dataset(config), audit_holdout(config)
    measured = measure_here(config, audit, holdout)

    def prove():
        looking = Looking(config, audit, holdout, measured, call_here(config))
        heads = study_heads(looking)
        assert not heads.files  # the words are right
        return study(looking, heads).proof

    proof = prove()
    assert proof.images == 176
    assert proof.lost <= config.verification.max_true_lost + 0.001
    before = np.mean([each.before for each in proof.judged])
    assert before > 0.7
    assert proof.accepted_share() < 0.05
    [blended] = [each for each in proof.challenges if each.kind == BLENDED]
    assert blended.accepted > 0.4  # it is half of each
    monkeypatch.setattr("actors.models.verifier.Verifier", lambda *_, **__: pytest.fail("it was loaded"))
    assert prove() == proof
