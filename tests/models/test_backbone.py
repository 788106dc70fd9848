from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, CLIPImageProcessor

from actors.models.vision.backbone import Backbone, as_map
from balancer.errors import WeightsError
from tests.tiny_models import SIDE, save_image_encoder

CPU = "cpu"
KINDS = ("final", "block1.moments", "block2.variogram", "block4.grid")


def pictures(count):
    return np.random.default_rng(3).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


@pytest.mark.parametrize("kind", ["vit", "registers", "convolutional", "timm"])
def test_an_encoder_gives_its_embedding_and_features_of_its_layers(tmp_path, kind):
    backbone = Backbone(str(save_image_encoder(tmp_path, kind)), None, CPU)
    seen = backbone.look_at_batch(backbone.prepare(pictures(3)), KINDS)
    assert seen.keys() == set(KINDS)
    assert all(len(values) == 3 and values.isfinite().all() for values in seen.values())
    assert torch.allclose(seen["final"].norm(dim=1), torch.ones(3))
    assert not torch.allclose(seen["final"][0], seen["final"][1])


def test_the_embedding_is_that_of_the_library(tmp_path):
    backbone = Backbone(str(save_image_encoder(tmp_path)), None, CPU)
    inputs = backbone.prepare(pictures(2))
    with torch.no_grad():
        expected = AutoModel.from_pretrained(tmp_path).eval()(inputs).pooler_output
    ours = backbone.look_at_batch(inputs, ("final",))["final"]
    assert torch.allclose(ours, torch.nn.functional.normalize(expected, dim=1), atol=1e-6)


def test_class_and_register_tokens_are_no_part_of_the_map():
    tokens = torch.arange(5 + 16.0).reshape(1, 21, 1)
    assert as_map(tokens).flatten().tolist() == [float(number) for number in range(5, 21)]
    assert as_map(tokens).shape == (1, 1, 4, 4)


@pytest.mark.parametrize("shape", [(2, 8), (2, 3, 8), (2, 117, 8)], ids=["no parts", "no square", "too many"])
def test_what_is_no_square_of_parts_is_no_map(shape):
    assert as_map(torch.zeros(shape)) is None


def refusal(folder):
    with pytest.raises(WeightsError) as caught:
        Backbone(str(folder), None, CPU)
    return caught.value.message


def test_preprocessing_that_keeps_the_shape_of_images_is_refused(tmp_path):
    save_image_encoder(tmp_path)
    CLIPImageProcessor(size={"shortest_edge": SIDE}, do_center_crop=False).save_pretrained(tmp_path)
    assert "images of one size" in refusal(tmp_path)


def test_weights_that_lack_a_tensor_are_refused(tmp_path):
    file = save_image_encoder(tmp_path) / "model.safetensors"
    tensors = load_file(file)
    tensors.pop(next(iter(tensors)))
    save_file(tensors, file, {"format": "pt"})
    assert "lack 1 tensor" in refusal(tmp_path)


def test_pickled_weights_are_refused(tmp_path):
    save_image_encoder(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    assert "only pickled weights" in refusal(tmp_path)


@pytest.mark.parametrize(
    "given",
    [
        {"architecture": "hf-hub:somebody/else"},
        {"architecture": "local-dir:/somewhere"},
        {"model_args": {"checkpoint_path": "weights.pth"}},
        {"pretrained_cfg": {"file": "/somewhere/weights.pth"}},
        {"auto_map": {"AutoModel": "code.Model"}},
    ],
    ids=lambda given: next(iter(given)),
)
def test_a_timm_config_that_leads_elsewhere_is_refused(tmp_path, given):
    config = save_image_encoder(tmp_path, "timm") / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | given))
    assert "config.json" in refusal(tmp_path)
