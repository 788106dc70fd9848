from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import log_softmax

from balancer.cli import main
from balancer.cli.datasets.calibrate import report_quality
from balancer.errors import UsageError
from balancer.verification.calibration import (
    TEMPERATURES,
    Examples,
    PropertyCalibration,
    calibrated,
    calibration_document,
    calibration_error,
    check_calibration,
    fit_property,
    fit_temperature,
    read_calibration,
    reliability,
    wordings_sha256,
    write_calibration,
)

VALUES = ("basic", "burnt", "mixed")
PROPERTIES: dict[str, dict[str, tuple[str, ...]]] = {
    "class": {"basic": ("a pizza", "a plain pizza"), "burnt": ("a burnt pizza",)},
    "lighting": {"dim": ("dim",), "bright": ("bright",)},
}
MIN_EXAMPLES = 5


def drawn(count: int, temperature: float, values: int = 3, seed: int = 0) -> Examples:
    """A verifier whose probabilities are right once they are divided by `temperature`."""
    random = np.random.default_rng(seed)
    logs = log_softmax(random.normal(0, 3, (count, values)), axis=1)
    right = calibrated(logs, temperature)
    labels = np.array([random.choice(values, p=row) for row in right])
    return Examples(tuple(f"v{index}" for index in range(values)), logs, labels)


def sure(counts: tuple[int, ...], odds: float = 20.0) -> Examples:
    """Every image told apart, with these odds (as a logarithm) for the value it is labelled with."""
    labels = np.repeat(np.arange(len(counts)), counts)
    logs = log_softmax(odds * np.eye(len(counts))[labels], axis=1)
    return Examples(VALUES[: len(counts)], logs, labels)


def fitted(*, temperature: float = 2.0):
    """A calibration file's content, with temperatures put in by hand."""
    found = {name: fit_property(sure((6, 6)), MIN_EXAMPLES) for name in PROPERTIES}
    document = calibration_document("embedded", "ab12", PROPERTIES, found)
    for name, values in PROPERTIES.items():
        document["properties"][name] |= {"values": [*values], "temperature": temperature}
    return document


# ---- temperatures ------------------------------------------------------------------------------


@given(
    arrays(np.float64, (4, 3), elements=st.floats(-50, 0)),
    st.floats(*TEMPERATURES),
)
def test_a_temperature_keeps_the_order_of_values_and_gives_probabilities(logs, temperature):
    scaled = calibrated(logs, temperature)
    assert scaled.sum(axis=1) == pytest.approx(1)
    for before, after in zip(logs, scaled, strict=True):
        assert (np.diff(after[np.argsort(before, kind="stable")]) >= 0).all()


def test_a_temperature_of_one_changes_nothing():
    logs = drawn(20, 1.0).log_probabilities
    assert calibrated(logs, 1.0) == pytest.approx(np.exp(logs))


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5, 8.0])
def test_the_temperature_that_the_labels_were_drawn_at_is_found(temperature):
    examples = drawn(4000, temperature)
    assert fit_temperature(examples.log_probabilities, examples.labels) == pytest.approx(temperature, rel=0.1)


@pytest.mark.parametrize("count", [10, 1000])
def test_images_that_are_all_told_apart_do_not_drive_the_temperature_to_zero(count):
    examples = sure((count, count))
    found = fit_temperature(examples.log_probabilities, examples.labels)
    assert 0.5 < found <= 1.01


def test_one_mistake_made_with_certainty_raises_the_temperature():
    examples = sure((30, 30))
    labels = np.array([1, *examples.labels[1:]])
    assert fit_temperature(examples.log_probabilities, labels) > 2


# ---- a property --------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.4, 4.0])
def test_calibration_lowers_the_error_of_images_it_was_not_fitted_on(temperature):
    found = fit_property(drawn(1500, temperature), MIN_EXAMPLES)
    before, after = found.calibration_error
    assert found.folds == 5
    assert after < 0.04
    assert after < before / 3


def test_all_figures_come_from_other_folds_than_the_image_is_in():
    # One image decides the temperature of whichever folds it is fitted in: its own fold knows nothing of it.
    examples = sure((10, 10))
    labels = np.array([1, *examples.labels[1:]])
    found = fit_property(Examples(VALUES[:2], examples.log_probabilities, labels), MIN_EXAMPLES)
    within = calibrated(examples.log_probabilities, found.temperature)
    inside = calibration_error(reliability(within, labels))
    assert found.calibration_error[1] != pytest.approx(inside, abs=1e-4)


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ((0, 0), "no labelled images"),
        ((40, 0), "40 basic"),
        ((40, 4), "40 basic, 4 burnt"),
        ((40,), "40 basic"),
    ],
)
def test_with_too_few_labelled_images_the_temperature_stays_one_and_says_why(counts, reason):
    found = fit_property(sure(counts), MIN_EXAMPLES)
    assert (found.temperature, found.folds) == (1.0, 0)
    assert reason in found.kept
    assert "verification.min_examples" in found.kept


@pytest.mark.parametrize("counts", [(1, 1), (5, 1), (1, 0)])
@pytest.mark.parametrize("least", [1, 2])
def test_a_temperature_takes_two_values_with_two_images_whatever_the_config_asks(counts, least):
    found = fit_property(sure(counts), least)
    assert (found.temperature, found.folds) == (1.0, 0)
    assert "two values with 2 labelled images each" in found.kept


@pytest.mark.parametrize(("counts", "folds"), [((20, 20, 20), 5), ((20, 7, 3), 3), ((20, 7, 1), 5)])
def test_there_are_no_more_folds_than_images_of_the_rarest_value(counts, folds):
    found = fit_property(sure(counts), MIN_EXAMPLES)
    assert (found.kept, found.folds, found.examples) == ("", folds, counts)


def test_confusion_and_auc_are_of_each_value_against_the_others():
    probabilities = np.array([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1]])
    found = fit_property(Examples(VALUES, np.log(probabilities), np.array([0, 0, 1, 1])), MIN_EXAMPLES)
    assert found.confusion == ((1, 1, 0), (1, 1, 0), (0, 0, 0))
    assert found.auc == (0.75, 0.75, None)


def test_bins_hold_every_image_once_with_its_confidence():
    examples = drawn(500, 1.0)
    probabilities = calibrated(examples.log_probabilities, 1.0)
    bins = reliability(probabilities, examples.labels)
    assert sum(each.images for each in bins) == 500
    assert all(each.low <= each.confidence <= each.high for each in bins)
    mean = sum(each.images * each.confidence for each in bins) / 500
    assert mean == pytest.approx(probabilities.max(axis=1).mean())


def test_the_calibration_error_is_the_mean_gap_between_confidence_and_accuracy():
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [1.0, 0.0]])
    bins = reliability(probabilities, np.array([0, 1, 0, 0]))
    # Bins of a fifteenth: 0.9 twice, half of them right; 0.6 once, right; 1.0 once, right.
    assert calibration_error(bins) == pytest.approx((2 * 0.4 + 0.4 + 0.0) / 4)


# ---- the file ----------------------------------------------------------------------------------


def test_what_was_written_is_read_again(tmp_path):
    path = tmp_path / "made" / "demo.calibration.json"
    write_calibration(path, fitted(temperature=1.5))
    found = read_calibration(path)
    assert found.temperatures == {"class": 1.5, "lighting": 1.5}
    check_calibration(found, path, "embedded", "ab12", PROPERTIES)


def test_the_figures_of_every_property_are_in_the_file():
    document = fitted()
    for found in document["properties"].values():
        assert {"auc", "confusion", "reliability", "calibration_error", "examples", "folds"} <= found.keys()
    json.dumps(document, allow_nan=False)


def test_the_same_temperatures_have_the_same_hash_and_others_another(tmp_path):
    for name, temperature in (("a", 1.5), ("b", 1.5), ("c", 1.6)):
        write_calibration(tmp_path / name, fitted(temperature=temperature))
    first, same, other = (read_calibration(tmp_path / name).sha256() for name in "abc")
    assert first == same != other


def changed(**changes):
    """The document with a value replaced at each dotted path."""
    document = fitted()
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = document
        for parent in parents:
            place = place[parent]
        place[last] = value
    return document


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04\x95",
        b"[1, 2]",
        b"[" * 100_000,
        json.dumps(changed(format=2)).encode(),
        json.dumps(changed(format=2)).encode()[:-40],
        json.dumps(changed(verifier={})).encode(),
        json.dumps(changed(properties=[])).encode(),
        json.dumps(changed(wordings_sha256=7)).encode(),
        json.dumps(changed(properties__class__values=["basic", "burnt", 3])).encode(),
        *(
            json.dumps(changed(properties__class__temperature=wrong)).encode()
            for wrong in (0, -1, 1e9, math.nan, math.inf, True, "1.0", None)
        ),
    ],
)
def test_a_file_that_is_no_calibration_is_refused(tmp_path, content):
    path = tmp_path / "c.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="is not a calibration") as caught:
        read_calibration(path)
    assert "balancer calibrate" in caught.value.hint


def test_calibrate_refuses_to_replace_another_file_before_it_measures(project, tmp_path, monkeypatch):
    import balancer.dataset.audit

    monkeypatch.setattr(balancer.dataset.audit, "audit_dataset", lambda config: pytest.fail("it measures"))
    (tmp_path / "notes.txt").write_text("mine")
    arguments = ["calibrate", str(project / "configs/demo.yaml"), "--out", str(tmp_path / "notes.txt")]
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"error: {tmp_path / 'notes.txt'} exists and is not a calibration\nhint: choose another --out\n"
    )
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_calibration_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"none\.json: the calibration cannot be read"):
        read_calibration(tmp_path / "none.json")


@pytest.mark.parametrize("kind", ["pipe", "device", "sparse"])
def test_a_calibration_that_is_no_regular_file_of_its_size_is_refused_and_not_waited_for(tmp_path, kind):
    path = tmp_path / "c.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(20_000_000_000)
    with pytest.raises(
        UsageError, match=r"c\.json: the calibration cannot be read: (not a reg|20,000\.0 mega)"
    ):
        read_calibration(path)


@pytest.mark.parametrize(
    ("weights", "properties", "problem"),
    [
        ("cd34", PROPERTIES, "made for the verifier embedded .ab12., not embedded .cd34."),
        ("ab12", {**PROPERTIES, "crust": {"thin": ("thin",)}}, "other values of crust"),
        ("ab12", {"class": PROPERTIES["class"]}, "other values of lighting"),
        ("ab12", {**PROPERTIES, "lighting": {"dim": ("dim",)}}, "other values of lighting"),
        ("ab12", {**PROPERTIES, "lighting": {"dim": ("dark",), "bright": ("bright",)}}, "other wordings"),
    ],
)
def test_a_calibration_for_something_else_is_refused(tmp_path, weights, properties, problem):
    write_calibration(tmp_path / "c.json", fitted())
    found = read_calibration(tmp_path / "c.json")
    with pytest.raises(UsageError, match=problem) as caught:
        check_calibration(found, "c.json", "embedded", weights, properties)
    assert "balancer calibrate" in caught.value.hint


def test_the_hash_of_wordings_is_over_words_and_values_alike():
    hashes = {
        wordings_sha256(properties)
        for properties in (
            PROPERTIES,
            {**PROPERTIES, "lighting": {"dim": ("dark",), "bright": ("bright",)}},
            {**PROPERTIES, "lighting": {"dark": ("dim",), "bright": ("bright",)}},
        )
    }
    assert len(hashes) == 3


# ---- what a calibration is worth -----------------------------------------------------------------


def with_aucs(*aucs: float | None) -> dict[str, PropertyCalibration]:
    values = tuple("abcdef"[: len(aucs)])
    count = len(values)
    return {
        "class": PropertyCalibration(
            values=values,
            temperature=1.0,
            kept="",
            examples=(5,) * count,
            folds=5,
            auc=aucs,
            confusion=((1,) * count,) * count,
            reliability=(),
            calibration_error=None,
        )
    }


@pytest.mark.parametrize(
    ("aucs", "recommended", "warned"),
    [((0.5, 0.5), False, 2), ((0.5, 0.9, None), True, 1), ((0.9, 0.95), True, 0), ((None, None), True, 0)],
)
def test_a_calibration_of_a_verifier_that_tells_nothing_apart_is_not_recommended(
    aucs, recommended, warned, capsys
):
    report_quality("a.json", with_aucs(*aucs), min_auc=0.8)
    said = capsys.readouterr().err
    assert ("put into the config: verification.calibration: a.json" in said) is recommended
    assert said.count("does not tell class=") == warned
