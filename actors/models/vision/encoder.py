"""An open_clip model, and what it sees in images: embeddings, and features of its earlier layers.

Batches have a fixed size, so what is seen in an image does not depend on how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Normalize, Resize

from actors.models.device import pick_device, use_threads
from actors.models.vision.backbone import Backbone
from actors.models.vision.layer_features import layer_features
from actors.weights import resolve as weights
from actors.weights.view import wrap_model_errors
from balancer.images import Pixels
from balancer.verification.small_pictures import EDGES, THUMBNAIL, picture_features
from balancer.verification.typicality import FINAL, PIXEL_KINDS, pixel_features

INTERNAL_BATCH = {"cpu": 4, "cuda": 16}
"""Images per batch: a CPU needs few, a GPU several."""

HINT = "verification.model must name an open_clip model"

Preprocess = Callable[[torch.Tensor], torch.Tensor]
Features = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Inputs:
    """Images as input of the encoder's model, and of its backbone if there is one."""

    own: torch.Tensor
    other: torch.Tensor | None = None

    @classmethod
    def joined(cls, parts: Sequence[Inputs]) -> Inputs:
        others = [part.other for part in parts if part.other is not None]
        return cls(torch.cat([part.own for part in parts]), torch.cat(others) if others else None)

    def __len__(self) -> int:
        return len(self.own)

    def __getitem__(self, part: slice) -> Inputs:
        return Inputs(self.own[part], None if self.other is None else self.other[part])

    def filled_up(self, size: int) -> Inputs:
        """With the last image as often as is needed for `size` of them."""
        return Inputs.joined([self, *[self[-1:]] * (size - len(self))])


class Encoder:
    """A model on one device, always in float32: half precision would move scores across thresholds.

    `scale` is what it multiplies similarities with, `size` the height and width of the images it sees. With a
    `backbone`, features of layers and the `final` one are those of that model.
    """

    def __init__(
        self,
        model: str,
        revision: str | None,
        device: str,
        threads: int | None,
        backbone: Backbone | None = None,
    ) -> None:
        self._backbone = backbone
        self.device = pick_device(device)
        use_threads(self.device, threads)
        self.name = model
        self.folder = folder = weights.resolve(model, revision, None, "verifier")
        self.revision = weights.identity(model, revision, folder)
        self._model, self._tokenize, transform = _load(folder, model, self.device)
        with wrap_model_errors(folder, model, HINT), torch.inference_mode():
            self._preprocess = batched(transform)
            self.scale = self._model.logit_scale.exp()
            height, width = self.prepare(np.zeros((1, 8, 8, 3), np.uint8)).own.shape[2:]
            self.size = (int(height), int(width))

    @torch.inference_mode()
    def prepare(self, pixels: np.ndarray) -> Inputs:
        """Images of one size as input of the models."""
        # A copy, because arrays from an object store or a decoder are read-only.
        images = torch.from_numpy(pixels.copy()).to(self.device).permute(0, 3, 1, 2)
        other = None if self._backbone is None else self._backbone.prepare(pixels)
        return Inputs(self._preprocess(images), other)

    def shrink(self, picture: Pixels) -> Pixels:
        """No larger than the model needs, in the same proportions."""
        scale = max(self.size) / min(picture.shape[:2])
        if scale >= 1.0:
            return picture
        height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
        return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))

    def prepare_all(self, pixels: np.ndarray) -> Inputs:
        """Like `prepare`, of any number of images."""
        size = INTERNAL_BATCH[self.device.type]
        return Inputs.joined(
            [self.prepare(pixels[start : start + size]) for start in range(0, len(pixels), size)]
        )

    def batches(self, images: Inputs) -> Iterator[Inputs]:
        """At most INTERNAL_BATCH inputs at a time."""
        size = INTERNAL_BATCH[self.device.type]
        return (images[start : start + size] for start in range(0, len(images), size))

    @torch.inference_mode()
    def look(self, images: Inputs, kinds: Collection[str]) -> tuple[torch.Tensor, Features]:
        """Embeddings (images, dim) of inputs, and their features of some `kinds` of
        `balancer.verification.typicality` and `.heads`, (images, numbers) in single precision by kind, as far
        as this model has them: those of layers only if it gives them out."""
        looks = [self.look_at_batch(batch, kinds) for batch in self.batches(images)]
        features = {kind: np.concatenate([each[1][kind] for each in looks]) for kind in looks[0][1]}
        embeddings = torch.cat([each[0] for each in looks])
        return embeddings[: len(images)], {kind: rows[: len(images)] for kind, rows in features.items()}

    @torch.inference_mode()
    def look_at_batch(self, images: Inputs, kinds: Collection[str]) -> tuple[torch.Tensor, Features]:
        """Like `look`, of at most INTERNAL_BATCH inputs, filled up to that many: the last bits of numbers
        depend on how many are computed at once."""
        filled = images.filled_up(INTERNAL_BATCH[self.device.type])
        embeddings, seen = self._see(filled, kinds)
        features = {kind: values.float().cpu().numpy() for kind, values in seen.items()}
        if not {*PIXEL_KINDS, THUMBNAIL, EDGES}.isdisjoint(kinds):
            pixels = filled.own.permute(0, 2, 3, 1).cpu().numpy()
            small = picture_features(pixels, kinds)
            features |= {kind: values.astype(np.float32) for kind, values in small.items()}
            if not set(PIXEL_KINDS).isdisjoint(kinds):
                features |= pixel_features(pixels, kinds)
        return embeddings, features

    def _see(self, images: Inputs, kinds: Collection[str]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Embeddings, and those features that a model sees."""
        if self._backbone is not None and images.other is not None:
            embeddings = self._model.encode_image(images.own, normalize=True)
            return embeddings, self._backbone.look_at_batch(images.other, kinds)
        seen: dict[str, torch.Tensor] = {}
        if any(kind.startswith("block") for kind in kinds) and _gives_layers(self._model.visual):
            outputs = self._model.forward_intermediates(image=images.own)
            embeddings = outputs["image_features"]
            seen = layer_features(outputs["image_intermediates"], kinds)
        else:
            embeddings = self._model.encode_image(images.own, normalize=True)
        return embeddings, seen | ({FINAL: embeddings} if FINAL in kinds else {})

    @torch.inference_mode()
    def embed_text(self, wordings: Sequence[str]) -> torch.Tensor:
        """The normalised mean of their normalised embeddings."""
        tokens = self._tokenize(list(wordings)).to(self.device)
        return F.normalize(self._model.encode_text(tokens, normalize=True).mean(dim=0), dim=0)

    def logits(self, embeddings: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        """Scaled similarities (images, texts), as doubles."""
        scaled: torch.Tensor = self.scale * embeddings @ texts.T
        return scaled.double()


def _gives_layers(tower: Any) -> bool:
    """Whether an open_clip image tower can return its layers; one of timm can if its trunk can."""
    return hasattr(getattr(tower, "trunk", tower), "forward_intermediates")


def batched(transform: Compose) -> Preprocess:
    """An open_clip image transform for batches: uint8 (N, 3, H, W) on any device.

    torchvision resizes and crops tensors on the device; transforms that open_clip has for PIL images only are
    applied image by image.
    """
    normalize = next(step for step in transform.transforms if isinstance(step, Normalize))
    shaping = [step for step in transform.transforms if isinstance(step, Resize | CenterCrop)]
    if any(type(step).__name__ in {"ResizeKeepRatio", "CenterCropOrPad"} for step in transform.transforms):
        return lambda images: _one_by_one(transform, images)
    return lambda images: normalize(Compose(shaping)(images).float().div(255))


def _one_by_one(transform: Compose, images: torch.Tensor) -> torch.Tensor:
    pictures = (Image.fromarray(image) for image in images.permute(0, 2, 3, 1).cpu().numpy())
    return torch.stack([transform(picture) for picture in pictures]).to(images.device)


def _load(folder: Path, model: str, device: torch.device) -> tuple[Any, Any, Compose]:
    """Model, tokenizer and image transform."""
    transformers.utils.logging.disable_progress_bar()
    with weights.shown_to_loader(folder, model, None, "verifier", HINT) as view:
        # Never create_model_and_transforms: it fills missing weights with random numbers.
        loaded, transform = open_clip.create_model_from_pretrained(f"local-dir:{view}", device=device)
        tokenizer = _tokenizer(view)
    return loaded.eval(), tokenizer, transform


def _tokenizer(view: Path) -> Any:
    """Like open_clip.get_tokenizer, which would pass all options of the model's config to transformers,
    including those that run code. `config_rules` checks the options."""
    text = open_clip.get_model_config(f"local-dir:{view}")["text_cfg"]
    options = text.get("tokenizer_kwargs") or {}
    length = text.get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH)
    if not text.get("hf_tokenizer_name"):
        return open_clip.SimpleTokenizer(context_length=length, **options)
    return open_clip.tokenizer.HFTokenizer(
        view,
        context_length=length,
        tokenizer_mode=text.get("tokenizer_mode"),
        trust_remote_code=False,
        local_files_only=True,
        **options,
    )
