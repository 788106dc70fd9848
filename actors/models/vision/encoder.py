"""An open_clip model, and what it sees in images: embeddings, and features of its earlier layers.

Batches have a fixed size, so what is seen in an image does not depend on how many there are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from torchvision.transforms import Compose

from actors.models.device import pick_device, use_full_float32, use_threads
from actors.models.vision.backbone import Backbone
from actors.models.vision.layer_features import layer_features
from actors.weights import resolve as weights
from actors.weights.view import wrap_model_errors
from actors.weights.vocabulary import refuse_empty_vocabulary
from balancer.errors import WeightsError
from balancer.images import Pixels
from balancer.verification.small_pictures import EDGES, THUMBNAIL, picture_features
from balancer.verification.typicality import FINAL, PIXEL_KINDS, pixel_features

INTERNAL_BATCH = {"cpu": 4, "cuda": 16}
"""Images per batch: a CPU needs few, a GPU several."""

HINT = "verification.model must name an open_clip model"

TRANSFORM_THREADS = 8
"""On a GPU. On a CPU an actor has one thread."""

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

    `scale` is what it multiplies similarities with, `bias` what it adds to them, `size` the height and width
    of the images it sees. With a `backbone`, features of layers and the `final` one are those of that model.
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
        use_full_float32(self.device)
        self.name = model
        self.folder = folder = weights.resolve(model, revision, None, "verifier")
        self.revision = weights.identity(model, revision, folder)
        self._model, self._tokenize, self._transform = _load(folder, model, self.device)
        # A GPU would wait for one thread; PIL holds no lock while it resizes.
        self._workers = None if self.device.type == "cpu" else ThreadPoolExecutor(TRANSFORM_THREADS)
        with wrap_model_errors(folder, model, HINT), torch.inference_mode():
            self.scale = self._model.logit_scale.exp()
            bias = getattr(self._model, "logit_bias", None)
            self.bias = 0.0 if bias is None else float(bias)
            height, width = self.prepare(np.zeros((1, 8, 8, 3), np.uint8)).own.shape[2:]
            self.size = (int(height), int(width))
            self._refuse_unusable()

    def _refuse_unusable(self) -> None:
        """Try the model out: what fails now would fail for every image, and be tried again each time."""
        grey = self.prepare(np.full((1, 48, 64, 3), 90, np.uint8))
        seen = self._model.encode_image(grey.own, normalize=True)
        words = self._model.encode_text(self._tokenize(["a"]).to(self.device), normalize=True)
        if seen.shape != words.shape:
            raise WeightsError(
                f"{self.name}: its embeddings of images have {seen.shape[-1]} numbers, those of texts"
                f" {words.shape[-1]}",
                hint=HINT,
            )
        if not seen.isfinite().all():
            raise WeightsError(f"{self.name}: gives no numbers for a grey image", hint=HINT)

    @torch.inference_mode()
    def prepare(self, pixels: np.ndarray) -> Inputs:
        """Images of one size as input of the models."""
        other = None if self._backbone is None else self._backbone.prepare(pixels)
        images = preprocessed(self._transform, pixels, self._workers)
        return Inputs(images.to(self.device), other)

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
        """The logits (images, texts) of the model's own head, as doubles: scaled similarities, and the bias
        of a model that was trained with a sigmoid."""
        scaled: torch.Tensor = self.scale * embeddings @ texts.T
        return scaled.double() + self.bias


def _gives_layers(tower: Any) -> bool:
    """Whether an open_clip image tower can return its layers; one of timm can if its trunk can."""
    return hasattr(getattr(tower, "trunk", tower), "forward_intermediates")


def preprocessed(transform: Compose, pixels: np.ndarray, workers: Executor | None = None) -> torch.Tensor:
    """Images uint8 (N, height, width, 3) through a model's own transform, as float32 (N, 3, height, width).

    Image by image with PIL, as open_clip does it: torchvision rounds tensors otherwise, which moves
    embeddings.
    """
    pictures = map(Image.fromarray, pixels)
    return torch.stack([*(map if workers is None else workers.map)(transform, pictures)])


def _load(folder: Path, model: str, device: torch.device) -> tuple[Any, Any, Compose]:
    """Model, tokenizer and image transform."""
    transformers.utils.logging.disable_progress_bar()
    with weights.shown_to_loader(folder, model, None, "verifier", HINT) as view:
        # Never create_model_and_transforms: it fills missing weights with random numbers.
        loaded, transform = open_clip.create_model_from_pretrained(f"local-dir:{view}", device=device)
        tokenizer = _tokenizer(view)
    refuse_empty_vocabulary(getattr(tokenizer, "tokenizer", None), model)
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
