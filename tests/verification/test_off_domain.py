from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from balancer.config.schema import Config, FallbackConfig
from balancer.errors import UsageError
from balancer.verification.off_domain import (
    MIN_DOMAIN_SCORE,
    MIN_IMAGES,
    DomainProof,
    RealImage,
    SeenImages,
    SeenReal,
    accepted_by_some_cell,
    prove_domain,
    refuse_accepted_challenges,
    summarise,
)
from balancer.verification.typicality import read_typicality
from balancer.verification.verdict import DomainLimits

CLASSES = ("basic", "burnt")
GRID, TEXTURES = "block1.grid", ("block1.moments", "block1.variogram", "block2.variogram")
KINDS = (GRID, *TEXTURES, "sharpness", "relative_sharpness", "seams", "cuts", "final")


def config(**verification) -> Config:
    return Config.model_validate(
        {
            "classes": {name: {"prompts": [name]} for name in CLASSES},
            "facets": {"lighting": {"values": {name: {"prompts": [name]} for name in ("dim", "harsh")}}},
            "target": {"per_class": 5},
            "verification": {"max_true_lost": 0.05, **verification},
        }
    )


def features(random: np.random.Generator, rows: int, odd: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Of images like the real ones, but for the kinds of feature in which they are odd."""
    return {kind: (random.normal(0, 1, (rows, 6)) + 20 * (kind in odd)).astype(np.float32) for kind in KINDS}


def real(count: int = 60, domain_score: float = 0.9, classes: tuple[str, ...] = CLASSES) -> list[RealImage]:
    random = np.random.default_rng(count)
    return [
        RealImage(
            classes[number % len(classes)],
            number,
            SeenReal(features(random, 3), domain_score),
            f"{number}.png",
        )
        for number in range(count)
    ]


def seen(count: int = 32, odd: tuple[str, ...] = (), domain_score: float = 0.9, **changes) -> SeenImages:
    """Images that a cell would accept."""
    certain = np.tile([0.9, 0.1], (count, 1))
    images = SeenImages(
        features=features(np.random.default_rng(count + 1), count, odd),
        probabilities={"class": certain, "lighting": certain},
        domain_scores=np.full(count, domain_score),
        brightness=np.full(count, 0.5),
        deviation=np.full(count, 0.2),
    )
    return replace(images, **changes)


def proof_of(challenges, images=None, **verification) -> DomainProof:
    return prove_domain(real() if images is None else images, challenges, {}, config(**verification)).proof


def accepted(proof: DomainProof) -> dict[str, float]:
    return {each.kind: each.accepted for each in proof.challenges}


# ---- what says no --------------------------------------------------------------------------------


def test_the_features_are_picked_that_keep_the_fewest_challenges():
    proof = proof_of({"blobs": seen(odd=(GRID,)), "flat": seen(odd=(GRID,))})
    assert GRID in proof.picked
    assert accepted(proof) == {"blobs": 0.0, "flat": 0.0}


def test_of_a_kind_is_stated_what_the_features_keep_that_the_other_kinds_pick():
    proof = proof_of({"blobs": seen(odd=(GRID,)), "flat": seen(odd=("cuts",))})
    assert max(accepted(proof).values()) > 0.8


def test_where_things_are_is_no_evidence_if_a_class_has_no_labelled_image():
    proof = proof_of({"blobs": seen(odd=(GRID,))}, real(classes=("basic",)))
    assert GRID not in proof.picked
    assert accepted(proof)["blobs"] > 0.8


def test_the_file_is_the_typicality_that_was_proven():
    challenge = seen(odd=TEXTURES)
    domain = prove_domain(real(), {"blobs": challenge}, {}, config())
    model = read_typicality(domain.typicality, domain.proof.sha256)
    assert tuple(model.distances) == domain.proof.picked
    assert (model.p_values(challenge.features) <= domain.proof.limits.typicality).all()


def test_words_reject_where_features_do_not():
    proof = proof_of({"blobs": seen(domain_score=0.03)})
    assert accepted(proof) == {"blobs": 0.0}
    assert proof.limits.domain_score == MIN_DOMAIN_SCORE


def test_words_that_would_reject_too_many_true_images_do_not_decide():
    proof = proof_of({"blobs": seen(domain_score=0.03)}, real(domain_score=0.04))
    assert proof.limits.domain_score is None
    assert proof.notes == (
        "words do not decide: they would reject 60 of the 60 labelled images, such as 0.png, 1.png, 2.png",
    )
    assert accepted(proof)["blobs"] > 0.8


def test_words_that_reject_one_of_a_few_labelled_images_do_not_decide():
    images = real(10)
    assert proof_of({"blobs": seen()}, images).limits.domain_score == MIN_DOMAIN_SCORE
    images[3] = replace(images[3], seen=replace(images[3].seen, domain_score=0.01))
    proof = proof_of({"blobs": seen(domain_score=0.01)}, images)
    assert proof.limits.domain_score is None
    assert "they would reject 1 of the 10 labelled images, such as 3.png" in proof.notes[0]


def test_one_odd_image_of_many_does_not_silence_the_words_and_is_named():
    images = real(30)
    images[3] = replace(images[3], seen=replace(images[3].seen, domain_score=0.01))
    proof = proof_of({"blobs": seen(domain_score=0.01)}, images, max_true_lost=0.01)
    assert proof.limits.domain_score == MIN_DOMAIN_SCORE
    assert proof.lost == pytest.approx(1 / 30 + 1 / 31)
    assert proof.notes == ("words reject 1 of the 30 labelled images, such as 3.png",)


def test_words_and_features_together_lose_no_more_than_allowed():
    images = real()
    images[0] = replace(images[0], seen=replace(images[0].seen, domain_score=0.01))
    proof = proof_of({"blobs": seen(domain_score=0.03)}, images)
    assert proof.limits.domain_score == MIN_DOMAIN_SCORE
    assert proof.limits.typicality == pytest.approx(0.05 - 1 / 60)
    assert proof.notes == ("words reject 1 of the 60 labelled images, such as 0.png",)
    assert proof.lost == pytest.approx(0.05)


def test_the_limit_of_typicality_is_never_one_that_rejects_nothing():
    proof = proof_of({"blobs": seen(odd=TEXTURES)}, real(30), max_true_lost=0.01)
    assert proof.limits.typicality == pytest.approx(1 / 31)
    assert accepted(proof) == {"blobs": 0.0}


@pytest.mark.parametrize(
    ("images", "settings", "note"),
    [
        (real(MIN_IMAGES - 1), {}, "no typicality: 19 different labelled images, 20 needed"),
        (real(), {"typicality": "never"}, "no typicality: verification.typicality is never"),
        ([], {}, "no typicality: 0 different labelled images, 20 needed"),
    ],
)
def test_without_typicality_words_decide_and_the_proof_says_why(images, settings, note):
    proof = proof_of({"blobs": seen(domain_score=0.03), "flat": seen(odd=KINDS)}, images, **settings)
    assert (proof.limits.typicality, proof.picked, proof.sha256) == (None, (), None)
    assert proof.limits.domain_score == MIN_DOMAIN_SCORE
    assert accepted(proof) == {"blobs": 0.0, "flat": 1.0}
    assert proof.notes == (note,)


def test_near_duplicates_count_as_one_image():
    proof = proof_of({"blobs": seen()}, [replace(image, group=0) for image in real()])
    assert proof.notes == ("no typicality: 1 different labelled image, 20 needed",)


def test_a_verifier_that_gives_no_layers_is_helped_by_its_embedding_and_the_pixels():
    lacking = {*TEXTURES, GRID}

    def without(each):
        return {kind: rows for kind, rows in each.items() if kind not in lacking}

    images = [replace(one, seen=replace(one.seen, features=without(one.seen.features))) for one in real()]
    challenge = seen(odd=("final",))
    proof = proof_of({"blobs": replace(challenge, features=without(challenge.features))}, images)
    assert proof.picked == ("final", "sharpness", "relative_sharpness", "seams")
    assert accepted(proof) == {"blobs": 0.0}


# ---- what a cell would accept --------------------------------------------------------------------


def test_an_image_is_accepted_if_some_class_and_some_value_of_each_facet_are_likely():
    values = np.array([[0.9, 0.1], [0.9, 0.1], [0.55, 0.45], [0.3, 0.7]])
    lights = np.array([[0.9, 0.1], [0.5, 0.5], [0.9, 0.1], [0.1, 0.9]])
    images = seen(4, probabilities={"class": values, "lighting": lights})
    assert accepted_by_some_cell(images, {}, config()).tolist() == [True, False, False, True]


def test_the_lowest_threshold_of_any_attempt_counts():
    values = np.array([[0.55, 0.45]])
    images = seen(1, probabilities={"class": values, "lighting": values})
    assert not accepted_by_some_cell(images, {}, config()).any()
    lower = config().model_copy(
        update={"attempts": config().attempts.model_copy(update={"fallback": FallbackConfig(threshold=0.5)})}
    )
    assert accepted_by_some_cell(images, {}, lower).all()


def test_what_is_unjudged_is_accepted_as_it_is():
    doubtful = np.full((2, 2), 0.5)
    images = seen(2, probabilities={"class": doubtful, "lighting": doubtful})
    assert accepted_by_some_cell(images, {}, config(unjudged=["class", "lighting"])).all()
    assert not accepted_by_some_cell(images, {}, config(unjudged=["class"])).any()


def test_calibrated_probabilities_count():
    images = seen(1)
    assert accepted_by_some_cell(images, {}, config()).all()
    assert not accepted_by_some_cell(images, {"class": 50.0}, config()).any()


@pytest.mark.parametrize("flaw", [{"brightness": [0.001]}, {"deviation": [0.0]}])
def test_blank_and_dark_images_are_accepted_by_no_cell(flaw):
    images = seen(1, **{name: np.array(values) for name, values in flaw.items()})
    assert not accepted_by_some_cell(images, {}, config()).any()


# ---- results -------------------------------------------------------------------------------------


def test_a_run_is_refused_if_too_many_challenges_would_pass():
    proof = proof_of({"blobs": seen(), "flat": seen(odd=TEXTURES)})
    with pytest.raises(UsageError) as refused:
        refuse_accepted_challenges(proof, config())
    assert "images that are none of the classes, 2.0% allowed" in str(refused.value)
    assert "most often blobs" in str(refused.value)
    assert "verification.unjudged: [off_domain=blobs]; off_domain alone" in refused.value.hint


@pytest.mark.parametrize(
    "settings",
    [
        {"unjudged": ["off_domain"]},
        {"unjudged": ["off_domain=blobs"]},
        {"unjudged": ["class"]},
        {"max_challenge_accepted": 1.0},
    ],
)
def test_a_run_is_not_refused_for_what_is_allowed(settings):
    proof = proof_of({"blobs": seen(), "flat": seen(odd=TEXTURES)})
    refuse_accepted_challenges(proof, config(**settings))


def test_blends_of_two_classes_are_shown_and_do_not_count():
    proof = proof_of({"blended": seen(), "flat": seen(odd=TEXTURES)})
    assert accepted(proof)["blended"] > 0.8
    assert proof.accepted_share() == 0.0
    refuse_accepted_challenges(proof, config())


def test_the_summary_says_what_passes_and_what_it_costs():
    proof = proof_of({"blobs": seen(odd=TEXTURES), "blended": seen()})
    assert summarise(proof) == (
        "off_domain: of 32 images of none of the classes 0% would pass;"
        " of 60 labelled images about 5.0% would not"
    )
    assert "; no labelled image to say what true ones it costs; no typicality: " in summarise(
        proof_of({"blobs": seen()}, [])
    )


def test_the_hint_leaves_out_what_is_allowed_and_keeps_what_is_unjudged():
    settings = {"unjudged": ["lighting=dim", "off_domain=blobs"]}
    proof = proof_of({"blobs": seen(), "flat": seen(), "text": seen(odd=TEXTURES)}, **settings)
    with pytest.raises(UsageError) as refused:
        refuse_accepted_challenges(proof, config(**settings))
    assert "most often flat" in str(refused.value)
    assert "[lighting=dim, off_domain=blobs, off_domain=flat]" in refused.value.hint


def test_what_is_unjudged_is_not_called_rejected():
    proof = proof_of({"blobs": seen(odd=TEXTURES)}, unjudged=["off_domain"])
    assert (proof.limits, proof.sha256, accepted(proof)) == (DomainLimits(), None, {"blobs": 1.0})
    assert "100% would pass" in summarise(proof)
    assert proof.notes == ("nothing is rejected as off_domain: verification.unjudged names it",)
    rejecting = proof_of({"blobs": seen(odd=TEXTURES)})
    assert accepted(rejecting.as_unjudged()) == {"blobs": 1.0}


def test_a_proof_comes_back_from_json():
    proof = proof_of({"blobs": seen(), "blended": seen()})
    assert DomainProof.from_dict(json.loads(json.dumps(proof.as_dict()))) == proof


@pytest.mark.parametrize("name", ["off_domain", "off_domain=shuffled"])
def test_off_domain_and_its_kinds_may_be_unjudged(name):
    assert config(unjudged=[name]).verification.unjudged == (name,)


@pytest.mark.parametrize("name", ["off_domain=pizza", "off_domains", "off_domain=", "off_domain=blended"])
def test_a_misspelt_kind_is_refused(name):
    with pytest.raises(ValueError, match="neither a property nor property=value"):
        config(unjudged=[name])


def unlike_others(count: int, of: str, shift: float) -> list[RealImage]:
    """Images of three classes, of which one is `shift` from the others in one kind of feature."""
    images = real(count, classes=("basic", "burnt", "mixed"))
    for image in images:
        if image.class_name == of:
            image.seen.features["block1.moments"][:] += shift
    return images


def with_a_class_without_images() -> Config:
    settings = config().model_dump(mode="json")
    settings["classes"] |= dict.fromkeys(("mixed", "new"), settings["classes"]["basic"])
    return Config.model_validate(settings)


@pytest.mark.parametrize(("shift", "least", "most"), [(0.0, 0.0, 0.2), (40.0, 0.3, 0.5)])
def test_what_a_class_without_images_may_lose_is_found_by_leaving_out_the_others(shift, least, most):
    """One of three classes that is like no other is rejected whole: a third, on average."""
    proof = prove_domain(unlike_others(90, "mixed", shift), {}, {}, with_a_class_without_images()).proof
    assert least <= proof.lost_unseen <= most
    assert "of those of a class without any about" in summarise(proof)
    assert DomainProof.from_dict(json.loads(json.dumps(proof.as_dict()))) == proof


def test_nothing_is_said_of_classes_without_images_where_there_is_none():
    proof = prove_domain(real(60), {}, {}, config()).proof
    assert proof.lost_unseen is None
    assert "without any" not in summarise(proof)
