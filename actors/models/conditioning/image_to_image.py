"""Images made from real ones: the image-to-image pipeline beside a text-to-image pipeline, with its weights.

Noise is drawn on the CPU with one generator per image, as for text, and each parent is encoded on its own, so
an image does not depend on its neighbours.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import diffusers
from PIL import Image, ImageOps

from actors.models.families.calls import known_arguments, taken
from actors.models.families.table import ALWAYS
from balancer.errors import ManifestError, UnavailableError
from balancer.images import pixel_sha256
from balancer.manifest.rows import REAL
from balancer.scheduling.prompts import ParentImage, Request
from balancer.training.images import Decoder

MAY_BE_ABSENT = frozenset({"width", "height", "callback_on_step_end", *ALWAYS})
"""Arguments whose absence changes no image: the parent has the size, and what is always off stays off."""

KEPT = 64
"""Parents that are kept at the size of the run: they come again and again."""


class ImageToImage:
    """Calls the image-to-image pipeline of a loaded `pipeline`. `parents` reads real images of the run."""

    def __init__(self, pipeline: Any, parents: Decoder, width: int, height: int, model: str) -> None:
        try:
            self._pipeline = diffusers.AutoPipelineForImage2Image.from_pipe(pipeline)
        except ValueError as error:
            raise UnavailableError(
                f"{model}: diffusers has no image-to-image pipeline for {type(pipeline).__name__}",
                hint="set generation.conditioning: text",
            ) from error
        self._pipeline.set_progress_bar_config(disable=True)
        self._known_arguments = known_arguments(self._pipeline)
        self._parents, self._size, self._model = parents, (width, height), model
        self._fitted = functools.lru_cache(KEPT)(self._fit)

    def __call__(self, requests: Sequence[Request], arguments: dict[str, Any]) -> Any:
        """The output of the pipeline for requests of one strength, which have parents."""
        images = [self._fitted(request.parent) for request in requests if request.parent is not None]
        given = arguments | {"image": images, "strength": requests[0].strength}
        if lost := given.keys() - self._known_arguments - MAY_BE_ABSENT:
            raise UnavailableError(
                f"{self._model}: its image-to-image pipeline takes no {', '.join(sorted(lost))}",
                hint="set generation.conditioning: text",
            )
        return self._pipeline(**taken(given, self._known_arguments))

    def _fit(self, parent: ParentImage) -> Image.Image:
        """Scaled until it covers the size, the middle cut out."""
        pixels = self._parents.pixels(parent.file_name, REAL)
        if pixel_sha256(pixels) != parent.pixel_sha256:
            raise ManifestError(
                f"{parent.file_name}: its pixels are not those that its row names",
                hint="`balancer fsck` lists every image that is damaged",
            )
        return ImageOps.fit(Image.fromarray(pixels), self._size, Image.Resampling.LANCZOS)
