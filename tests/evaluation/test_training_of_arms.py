"""Training one arm: what the network learns, and which networks and weights there are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from actors.evaluation.encoding import embed_all
from actors.evaluation.evaluate import evaluate
from actors.evaluation.recipe import Recipe, recipe_of
from actors.evaluation.training import load_weights, named_network, train
from balancer.config.evaluation import EncoderConfig, EvaluationConfig
from balancer.errors import UsageError, WeightsError
from balancer.evaluation.arms import (
    BASELINES,
    REAL_ALONE,
    Job,
    Pool,
    draw,
    exposures,
    members_of,
    thinned,
    weights,
    with_generated,
    worth,
)
from tests.evaluation.here import Made, Trainers, make_run, picture, settings

POOL = Pool(
    labels=np.array([0] * 6 + [1] * 12),
    is_real=np.array([True] * 4 + [False] * 2 + [True] * 2 + [False] * 10),
    is_accepted=np.array([False] * 4 + [True] * 2 + [False] * 2 + [True] * 8 + [False] * 2),
)

AUGMENTED = next(arm for arm in BASELINES if arm.augmented)


def recipe(**changes):
    usual = {"kind": "network", "classes": ("a", "b", "unseen"), "steps": 25, "batch_size": 8}
    return Recipe(**(usual | {"image_size": 32, "num_cpus": 1, "num_gpus": 0} | changes))


def pixels(labels):
    images = [picture(label, number, 2.0) for number, label in enumerate(labels)]
    return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("kind", "architecture"),
    [("network", None), ("full", "shufflenet_v2_x0_5"), ("full", "timm:test_resnet")],
)
def test_a_network_learns_and_the_same_seed_gives_the_same(kind, architecture):
    arm = with_generated(BASELINES[0], "accepted")
    job = Job("test", arm, 0.01, 0, 0.5)
    held_out = pixels([0, 1] * 10)
    one, other = (
        train(recipe(kind=kind, architecture=architecture), POOL, pixels(POOL.labels), held_out, job)
        for _ in "ab"
    )
    assert one == other
    assert set(one) <= {0, 1}  # never the class without training images
    if kind == "network":
        assert np.mean(np.array(one) == [0, 1] * 10) > 0.8


def test_a_linear_head_learns_from_embeddings_and_their_changed_copies():
    vectors = np.random.default_rng(0).normal(0, 0.2, (18, 3, 5)).astype(np.float32)
    vectors[:, :, 0] += POOL.labels[:, None] * 2 - 1
    job = Job("test", AUGMENTED, 0.1, 0)
    assert train(recipe(kind="head"), POOL, vectors, vectors[:, :1], job) == POOL.labels.tolist()


def test_an_encoder_of_timm_embeds_images_and_changed_copies(tmp_path):
    import timm

    model = timm.create_model("test_resnet", pretrained=False, num_classes=0)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    encoder = EncoderConfig(model="timm:test_resnet", weights="weights.safetensors")
    seen = embed_all(encoder, str(tmp_path / "weights.safetensors"), pixels([0, 1, 0]), 1, False)
    assert seen.shape[:2] == (3, 2)
    assert np.linalg.norm(seen, axis=2) == pytest.approx(np.ones((3, 2)), abs=1e-4)
    assert not np.allclose(seen[:, 0], seen[:, 1])


def test_weights_start_a_network_with_other_classes_and_others_are_refused(tmp_path):
    source = named_network("shufflenet_v2_x0_5", 7, None)
    save_file(source.state_dict(), tmp_path / "own.safetensors")
    model = named_network("shufflenet_v2_x0_5", 3, str(tmp_path / "own.safetensors"))
    assert torch.equal(model.conv1[0].weight, source.conv1[0].weight)
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="lacks"):
        load_weights(model, tmp_path / "other.safetensors")
    (tmp_path / "pickle.safetensors").write_bytes(b"\x80\x04.")
    with pytest.raises(WeightsError, match="safetensors"):
        load_weights(model, tmp_path / "pickle.safetensors")


@pytest.mark.parametrize("name", ["resnet19", "timm:resnet19"])
def test_an_architecture_that_does_not_exist_is_told(name):
    with pytest.raises(UsageError, match="has no 'resnet19'") as refused:
        named_network(name, 2, None)
    assert "did you mean" in refused.value.hint


@pytest.mark.parametrize("name", ["hf-hub:someone/model", "../resnet", "timm:a/b", "https://x"])
def test_an_architecture_names_no_place(name):
    with pytest.raises(ValueError, match="architecture"):
        EvaluationConfig(architecture=name)


@pytest.mark.parametrize(
    ("baseline", "rarer"), [*zip(BASELINES, (6 / 16, 1 / 2, 1 / 2, 6 / 16), strict=True)]
)
def test_real_images_alone_are_drawn_alike_and_generated_ones_as_the_baseline_draws_classes(baseline, rarer):
    plain = draw(Job("test", REAL_ALONE, 0.1, 0), POOL, 6000)
    assert POOL.is_real[plain].all()
    assert np.mean(POOL.labels[plain] == 0) == pytest.approx(4 / 6, abs=0.03)
    arm = with_generated(baseline, "accepted")
    members = members_of(Job("test", arm, 0.1, 0, 0.5), POOL)
    assert len(members) == 16  # without the two that were not accepted
    shares = weights(arm, POOL, members, 0.5)
    assert shares.sum() == pytest.approx(1)
    assert shares[POOL.labels[members] == 0].sum() == pytest.approx(rarer)
    of_other = (POOL.labels[members] == 1) & POOL.is_real[members]
    assert shares[of_other].sum() == pytest.approx((1 - rarer) / 2)
    assert len(members_of(Job("test", with_generated(REAL_ALONE, "unfiltered"), 0.1, 0, 0.5), POOL)) == 18


@pytest.mark.parametrize("baseline", BASELINES)
def test_the_same_images_once_more_change_no_draw(baseline):
    """Whatever the baseline does, what the gate compares is then the same training twice."""
    real = POOL.labels[POOL.is_real]
    pool = Pool(np.tile(real, 2), np.arange(12) < 6, np.arange(12) >= 6)
    arm = with_generated(baseline, "accepted")
    assert (arm.augmented, arm.adjusted) == (baseline.augmented, baseline.adjusted)
    alone = weights(baseline, pool, np.arange(6), None)
    for share in (0.3, 0.5, 0.8):
        both = weights(arm, pool, np.arange(12), share)
        assert both[:6] + both[6:] == pytest.approx(alone)


def test_seeds_have_their_own_draws_and_their_own_part_of_the_real_images():
    jobs = [Job("test", thinned(REAL_ALONE, 0.5), 0.1, seed) for seed in range(8)]
    assert {len(members_of(job, POOL)) for job in jobs} == {3}
    assert len({members_of(job, POOL).tobytes() for job in jobs}) > 1
    assert len({draw(Job("test", REAL_ALONE, 0.1, seed), POOL, 50).tobytes() for seed in range(8)}) == 8


def test_exposures_are_those_of_the_draws():
    shown = exposures(
        Job("test", with_generated(REAL_ALONE, "accepted"), 0.1, 0, 0.5), POOL, 800, ("a", "b", "c")
    )
    assert shown["c"] == {}
    assert 4 * shown["a"]["real"] + 2 * shown["a"]["generated"] + 2 * shown["b"]["real"] + 8 * shown["b"][
        "generated"
    ] == pytest.approx(800)
    assert shown["b"]["real"] > 2 * shown["b"]["generated"]


def test_generated_images_are_worth_what_the_curve_over_real_ones_says():
    assert worth([25, 50, 100], [0.5, 0.6, 0.7], 0.65) == (71, False)
    assert worth([25, 50, 100], [0.5, 0.6, 0.7], 0.99) == (200, True)
    assert worth([25, 50, 100], [0.7, 0.7, 0.69], 0.8) is None


def test_an_encoder_that_selected_the_images_is_refused(tmp_path):
    run = make_run(tmp_path / "run", Made(2, 2, 2, 2))
    with pytest.raises(UsageError, match="which selected the generated images"):
        evaluate(run, settings(encoder={"model": "embedded"}), trainers=Trainers())


def test_too_few_test_images_are_refused_before_anything_is_written(tmp_path):
    run = make_run(tmp_path / "run", Made(2, 2, 4, 2))
    with pytest.raises(UsageError, match="too few held-out real images"):
        evaluate(run, settings(), trainers=Trainers())
    assert not (run / "evaluation").exists()


@pytest.mark.parametrize(
    ("changes", "kind", "size"),
    [({}, "network", 32), ({"encoder": {"model": "x"}}, "head", 224), ({"depth": "full"}, "full", 224)],
)
def test_the_depth_decides_what_is_trained(changes, kind, size):
    made = recipe_of(EvaluationConfig(**changes), ("a", "b"), None)
    assert (made.kind, made.image_size) == (kind, size)
