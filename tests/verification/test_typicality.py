from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save
from sklearn.covariance import ledoit_wolf

from balancer.errors import ManifestError
from balancer.verification.challenges import make_challenges
from balancer.verification.typicality import (
    MAX_AXES,
    MIN_GROUPS,
    Typicality,
    choose,
    fit_typicality,
    from_bytes,
    pixel_features,
    read_typicality,
    to_bytes,
)

KINDS = ("few", "many")


def features(count: int, seed: int = 0, shift: float = 0.0, copies: int = 1) -> dict[str, np.ndarray]:
    """Fewer numbers than images in one kind, more in the other, and correlated in both."""
    found = {}
    for kind, numbers in (("few", 5), ("many", 80)):
        mixing = np.random.default_rng(numbers).normal(0, 1, (numbers, numbers)) / np.sqrt(numbers)
        random = np.random.default_rng((seed, numbers))
        values = random.normal(0, 1, (count, numbers)) @ mixing + shift
        found[kind] = np.repeat(values, copies, axis=0) + random.normal(0, 0.01, (count * copies, numbers))
    return found


def fitted(count: int = 40, copies: int = 1) -> Typicality:
    return fit_typicality(features(count, copies=copies), np.repeat(np.arange(count), copies), KINDS)


def test_p_values_of_images_like_the_real_ones_are_at_most_as_often_low_as_they_say():
    shares = []
    for seed in range(20):
        model = fit_typicality(features(40, seed), np.arange(40), KINDS)
        shares.append(model.p_values(features(200, seed + 100)) <= 0.1)
    assert 0.06 < np.mean(shares) < 0.125


def test_images_of_something_else_have_the_lowest_p_value():
    assert fitted().p_values(features(50, 1, shift=5.0)) == pytest.approx(1 / 41)


def test_one_odd_kind_of_feature_is_enough():
    mixed = features(20, 1) | {"many": features(20, 1, shift=5.0)["many"]}
    assert (fitted().p_values(mixed) < 0.03).all()


def test_an_image_with_nan_is_the_oddest():
    broken = features(2, 1)
    broken["few"][0, 0] = np.nan
    first, second = fitted().p_values(broken)
    assert first == pytest.approx(1 / 41)
    assert second > first


def test_images_beyond_all_numbers_are_odd_and_give_no_warning():
    far = {kind: np.full_like(values, 1e150) for kind, values in features(3).items()}
    assert fitted().p_values(far) == pytest.approx(1 / 41)


def test_variations_of_an_image_count_as_one_image():
    model = fitted(copies=4)
    assert [each.weights.sum() for each in model.references] == pytest.approx([40, 40])
    assert model.p_values(features(1, 1, shift=9.0))[0] == pytest.approx(1 / 41)


def test_odd_real_images_are_not_outvoted_by_their_variations():
    """Real images that are odder than their variations: as many as said are lost all the same."""
    count, copies = 60, 7
    groups = np.repeat(np.arange(count), copies)
    real = np.arange(count * copies) % copies == 0
    lost = []
    for seed in range(10):
        values = features(count, seed, copies=copies)["few"]
        values[real] *= 2.0
        model = fit_typicality({"few": values}, groups, ["few"])
        lost.append(model.p_values({"few": 2.0 * features(300, seed + 100)["few"]}) <= 0.1)
    assert np.mean(lost) < 0.13


def test_no_image_is_judged_by_a_fit_on_a_variation_of_itself():
    alone = fit_typicality(features(40), np.arange(40), KINDS)
    varied = fitted(copies=4)
    # Were they judged by such fits, their scores would be those of images seen before.
    assert np.median(varied.distances["many"].usual) > 0.8 * alone.distances["many"].usual
    seen = np.log(varied.distances["many"].squared(features(40)["many"])).mean()
    assert varied.distances["many"].usual > seen


@pytest.mark.parametrize("kind", KINDS)
def test_the_covariance_is_shrunk_as_ledoit_and_wolf_do(kind):
    values = features(40)[kind]
    distance = fit_typicality({kind: values}, np.arange(40), [kind]).distances[kind]
    scaled = (values - distance.centre) / distance.scale
    covariance, _ = ledoit_wolf(scaled, assume_centered=True)
    others = features(10, 1)[kind]
    expected = [row @ np.linalg.solve(covariance, row) for row in (others - distance.centre) / distance.scale]
    assert distance.squared(others) * values.shape[1] == pytest.approx(np.array(expected), rel=1e-6)


def test_a_distance_keeps_the_largest_axes_and_the_mean_variance_of_the_others():
    random = np.random.default_rng(0)
    values = random.normal(0, 1, (2000, 150)) * np.linspace(1, 3, 150)
    values[:, :20] += 3 * random.normal(0, 1, (2000, 1))
    distance = fit_typicality({"wide": values}, np.arange(2000), ["wide"]).distances["wide"]
    assert distance.axes.shape == (150, MAX_AXES)
    assert (np.diff(distance.variances) <= 0).all()
    assert 0 < distance.rest < distance.variances[-1]
    assert distance.squared(values).mean() == pytest.approx(1, rel=0.05)


def test_a_number_that_never_varies_does_no_harm():
    values = features(40)["few"]
    values[:, 0] = 3.0
    p_values = fit_typicality({"few": values}, np.arange(40), ["few"]).p_values({"few": values})
    assert p_values.mean() > 0.3


def test_features_that_are_all_the_same_can_be_fitted():
    same = {"few": np.ones((40, 5))}
    assert np.isfinite(fit_typicality(same, np.arange(40), ["few"]).p_values(same)).all()


def test_a_few_images_are_too_few():
    with pytest.raises(ValueError, match=f"{MIN_GROUPS - 1} real images, {MIN_GROUPS} needed"):
        fitted(MIN_GROUPS - 1)


def test_fitting_is_deterministic():
    assert to_bytes(fitted()) == to_bytes(fitted())


def test_a_model_from_a_file_gives_nearly_the_same_p_values():
    model, others = fitted(copies=2), features(30, 1, shift=0.3)
    again = from_bytes(to_bytes(model))
    assert again.p_values(others) == pytest.approx(model.p_values(others), abs=1.5 / 41)
    assert to_bytes(again) == to_bytes(model)


def changed(name: str, values: np.ndarray | None) -> bytes:
    """A file of a model with other values in one place, or without it."""
    arrays = load(to_bytes(fitted()))
    del arrays[name]
    return save(arrays if values is None else arrays | {name: values.astype("<f4")})


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("reference0/scores", None),
        ("reference0/weights", None),
        ("reference0/scores", np.ones(1)),
        ("reference0/scores", np.arange(40.0)[::-1]),
        ("reference0/weights", np.zeros(40)),
        ("reference0/weights", np.full(40, np.nan)),
        ("reference0/weights", np.full(40, 0.1)),
        ("few/numbers", np.array([0.0, 1.0, 1.0])),
        ("few/numbers", np.array([1.0, np.inf, 1.0])),
        ("few/numbers", np.array([1.0, 1.0, -1.0])),
        ("few/numbers", np.ones(2)),
        ("few/variances", np.full(5, -1.0)),
        ("few/axes", np.ones((1, 1))),
        ("few/axes", np.ones(5)),
        ("few/centre", np.zeros(1)),
        ("few/scale", None),
    ],
)
def test_a_file_that_is_no_model_is_refused(name, values):
    with pytest.raises(ValueError):  # noqa: PT011 - by its own reason
        from_bytes(changed(name, values))


def test_a_file_has_no_more_axes_than_there_are_numbers():
    """Each image would take gigabytes."""
    arrays = load(to_bytes(fitted()))
    count, numbers = 10**6, len(arrays["few/centre"])
    more = {"few/variances": np.ones(count, "<f4"), "few/axes": np.ones((numbers, count), "<f4")}
    with pytest.raises(ValueError, match="do not fit together"):
        from_bytes(save(arrays | more))


@pytest.mark.parametrize("dtype", ["u1", "<f8", "<c8", "<f2"])
def test_a_file_has_single_precision_only(dtype):
    """A file of bytes would take eight times its size."""
    arrays = load(to_bytes(fitted()))
    with pytest.raises(ValueError, match="single precision"):
        from_bytes(save(arrays | {"few/scale": np.ones(len(arrays["few/scale"]), dtype)}))


def test_a_file_of_many_arrays_is_refused():
    with pytest.raises(ValueError, match="more than 200 arrays"):
        from_bytes(save({f"few/{number}": np.ones(1, "<f4") for number in range(201)}))


def test_features_that_it_was_not_fitted_on_are_refused():
    model, others = fitted(), features(2, 1)
    kind = next(iter(model.distances))
    for wrong in ({**others, kind: others[kind][:, 1:]}, {}):
        with pytest.raises(ManifestError, match="which this verifier does not give"):
            model.p_values(wrong)


@pytest.mark.parametrize("data", [b"", b"abc", save({}), save({"few/centre": np.ones(3, "<f4")})])
def test_a_file_of_something_else_is_refused(data):
    with pytest.raises(ValueError):  # noqa: PT011 - by its own reason
        from_bytes(data)


def test_a_file_must_be_the_one_that_was_named():
    data = to_bytes(fitted())
    sha256 = hashlib.sha256(data).hexdigest()
    assert to_bytes(read_typicality(data, sha256)) == data
    with pytest.raises(ValueError, match="its content is not what its name says"):
        read_typicality(data[:-1], sha256)


# ---- choosing ----------------------------------------------------------------------------------


def test_the_candidate_that_keeps_fewest_is_chosen():
    assert choose({"a": {"noise": 0.2, "blobs": 0.3}, "b": {"noise": 0.1, "blobs": 0.2}})[0] == "b"


def test_of_equal_candidates_the_first_is_choose():
    assert choose({"a": {"noise": 0.1}, "b": {"noise": 0.1}})[0] == "a"


def test_what_is_expected_of_a_kind_was_not_chosen_on_it():
    kept = {"good at noise": {"noise": 0.0, "blobs": 0.4}, "good at blobs": {"noise": 0.6, "blobs": 0.0}}
    assert choose(kept) == ("good at noise", {"noise": 0.6, "blobs": 0.4})


# ---- pixels ------------------------------------------------------------------------------------


def pixels(kind: str, count: int = 6) -> np.ndarray:
    smooth = list(make_challenges("blobs", count, 0, (64, 64)))
    return make_challenges(kind, count, 0, (64, 64), smooth) / 127.5 - 1.0


@given(st.sampled_from(["white_noise", "flat", "blobs", "weave"]), st.tuples(*[st.integers(16, 40)] * 2))
@settings(max_examples=15, deadline=None)
def test_features_of_pixels_are_finite_at_any_size(kind, size):
    for values in pixel_features(make_challenges(kind, 2, 0, size) / 127.5 - 1.0).values():
        assert values.shape[0] == 2
        assert np.isfinite(values).all()


def test_a_blurred_image_has_less_energy_in_the_finest_octave():
    sharp, soft = pixel_features(pixels("inverted")), pixel_features(pixels("blurred"))
    assert (sharp["sharpness"][:, 0] > soft["sharpness"][:, 0]).all()


def test_relative_sharpness_does_not_depend_on_contrast():
    images = pixels("white_noise")
    full, half = pixel_features(images), pixel_features(images / 2.0)
    assert half["relative_sharpness"] == pytest.approx(full["relative_sharpness"], abs=0.02)
    assert (half["sharpness"] < full["sharpness"] - 0.5).all()


@pytest.mark.parametrize("kind", ["seams", "cuts"])
def test_tiles_put_together_show(kind):
    whole, tiles = pixel_features(pixels("inverted"))[kind], pixel_features(pixels("cut_and_mixed"))[kind]
    assert tiles.mean() > whole.mean() + 0.3


def test_features_of_an_image_do_not_depend_on_the_others():
    images = pixels("blobs")
    for kind, values in pixel_features(images).items():
        assert np.array_equal(pixel_features(images[2:3])[kind][0], values[2])
