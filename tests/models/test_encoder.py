from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from actors.models.vision.encoder import Encoder, preprocessed
from actors.models.vision.layer_features import layer_features
from tests.models.test_verifier import MODEL, pictures, save_model

PIXEL_KINDS = {"sharpness", "relative_sharpness", "seams", "cuts"}
LAYER_KINDS = {
    f"block{number}.{part}" for number in (1, 2, 3, 4) for part in ("moments", "variogram", "grid")
}
KINDS = LAYER_KINDS | PIXEL_KINDS | {"final"}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Encoder:
    return Encoder(str(save_model(tmp_path_factory.mktemp("clip"))), None, "cpu", 1)


def look(encoder: Encoder, pixels: np.ndarray, kinds=KINDS):
    return encoder.look(encoder.prepare_all(pixels), kinds)


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(32, 32), (64, 64), (40, 90), (20, 28)])
def test_preprocessing_is_that_of_open_clip(mode, interpolation, size):
    config = open_clip.transform.PreprocessCfg(
        size=32,
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.25, 0.3),
        resize_mode=mode,
        interpolation=interpolation,
    )
    transform = open_clip.transform.image_transform_v2(config, is_train=False)
    pixels = pictures(3, *size)
    expected = torch.stack([transform(Image.fromarray(image)) for image in pixels])
    with ThreadPoolExecutor(2) as workers:
        for made in (preprocessed(transform, pixels), preprocessed(transform, pixels, workers)):
            assert torch.equal(made, expected)


def test_features_come_from_layers_the_embedding_and_the_pixels(encoder):
    _, features = look(encoder, pictures(5))
    assert features.keys() == {"block1.moments", "block1.variogram", "block1.grid", "final"} | PIXEL_KINDS
    for values in features.values():
        assert (len(values), values.dtype) == (5, np.float32)
        assert np.isfinite(values).all()


@pytest.mark.parametrize("kinds", [(), ("cuts",), ("block1.grid", "final")])
def test_only_features_that_are_asked_for_are_taken(encoder, kinds):
    embeddings, features = look(encoder, pictures(5), kinds)
    assert features.keys() == set(kinds)
    assert torch.equal(embeddings, look(encoder, pictures(5))[0])


def test_the_final_feature_is_the_embedding(encoder):
    embeddings, features = look(encoder, pictures(5))
    assert np.array_equal(features["final"], embeddings.numpy())


def test_what_is_seen_in_an_image_does_not_depend_on_how_many_came(encoder):
    (together, features), (alone, own) = (
        look(encoder, pictures(5)[part]) for part in (slice(5), slice(3, 4))
    )
    assert torch.equal(alone[0], together[3])
    for kind, values in own.items():
        assert np.array_equal(values[0], features[kind][3]), kind


TOWERS = {
    "resnet": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8},
    "timm": {"image_size": 32, "timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear"},
}


@pytest.mark.parametrize("tower", TOWERS)
def test_other_towers_of_open_clip_give_four_layers(tower, monkeypatch, encoder):
    model = open_clip.CustomTextCLIP if tower == "timm" else open_clip.CLIP
    built = model(8, TOWERS[tower], MODEL["text_cfg"] | {"hf_tokenizer_name": None}).eval()
    monkeypatch.setattr(encoder, "_model", built)
    embeddings, features = look(encoder, pictures(2))
    assert {f"block{number}.moments" for number in (1, 2, 3, 4)} < features.keys()
    with torch.no_grad():
        expected = built.encode_image(encoder.prepare(pictures(2)).own, normalize=True)
    assert embeddings.numpy() == pytest.approx(expected.numpy(), abs=1e-5)


def test_a_tower_that_gives_no_layers_is_judged_by_its_embedding_and_the_pixels(monkeypatch, encoder):
    monkeypatch.setattr("actors.models.vision.encoder._gives_layers", lambda tower: False)
    assert look(encoder, pictures(2))[1].keys() == {"final"} | PIXEL_KINDS


@pytest.mark.parametrize(
    ("layers", "taken"), [(1, [0]), (3, [0, 1, 2]), (4, [0, 1, 2, 3]), (12, [2, 5, 8, 11])]
)
def test_layers_are_taken_evenly_spaced_in_depth_and_the_last_one_always(layers, taken):
    maps = [torch.full((1, 2, 8, 8), float(number)) for number in range(layers)]
    features = layer_features(maps, KINDS)
    means = [features[f"block{number}.moments"][0, 0].item() for number in range(1, len(taken) + 1)]
    assert means == taken


def test_a_variogram_does_not_depend_on_how_strong_a_channel_is():
    layer = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    [plain, strong] = (layer_features([scale * layer], KINDS)["block1.variogram"] for scale in (1, 10))
    assert strong.numpy() == pytest.approx(plain.numpy(), rel=1e-3)


def test_a_grid_tells_where_and_moments_do_not():
    layer = torch.zeros(1, 1, 8, 8)
    layer[..., :2, :2] = 1.0
    upright, turned = (layer_features([each], KINDS) for each in (layer, layer.flip(2, 3)))
    assert torch.equal(upright["block1.moments"], turned["block1.moments"])
    assert not torch.equal(upright["block1.grid"], turned["block1.grid"])


@pytest.mark.parametrize("side", [1, 2, 3])
def test_small_maps_have_features_too(side):
    for values in layer_features([torch.rand(2, 3, side, side)], KINDS).values():
        assert torch.isfinite(values).all()
