"""Features of small versions of an image, which need no model: a verifier may never have learned what tells
the classes of a config apart."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

THUMBNAIL, EDGES = "thumbnail", "edges"
"""Kinds of features."""

THUMBNAIL_SIDE = 16
EDGES_SIDE, EDGES_PARTS, DIRECTIONS = 32, 8, 8


def picture_features(images: NDArray[Any], kinds: Collection[str] = (THUMBNAIL, EDGES)) -> dict[str, Floats]:
    """Features of some `kinds`, of small versions of images (N, height, width, 3) as a verifier's
    preprocessing gives them.

    THUMBNAIL has the pixels of 16 x 16, EDGES how strong the edges of 8 directions are in each of 8 x 8 parts
    (histograms of oriented gradients, Dalal and Triggs 2005).
    """
    pixels = np.asarray(images, np.float64).transpose(0, 3, 1, 2)
    features = {}
    if THUMBNAIL in kinds:
        features[THUMBNAIL] = _shrunk(pixels, THUMBNAIL_SIDE).reshape(len(images), -1)
    if EDGES in kinds:
        features[EDGES] = _edges(_shrunk(pixels, EDGES_SIDE).mean(axis=1)).reshape(len(images), -1)
    return features


def _shrunk(pixels: Floats, side: int) -> Floats:
    """The means of side x side parts; pixels on a border belong to both."""
    means: Floats = _shares(pixels.shape[2], side).T @ (pixels @ _shares(pixels.shape[3], side))
    return means


def _shares(length: int, parts: int) -> Floats:
    """(length, parts): the share of each pixel in the mean of each part."""
    edges, pixels = np.linspace(0.0, length, parts + 1), np.arange(length)[:, None]
    overlap: Floats = np.minimum(pixels + 1.0, edges[1:]) - np.maximum(pixels, edges[:-1])
    return np.maximum(overlap, 0.0) * (parts / length)


def _edges(grey: Floats) -> Floats:
    """(images, directions, parts, parts) of (images, side, side). An edge between two directions counts for
    both; light to dark is the same as dark to light."""
    down, across = np.gradient(grey, axis=(1, 2))
    turn = np.arctan2(down, across) / np.pi % 1.0 * DIRECTIONS
    apart = np.abs(turn[:, None] - np.arange(DIRECTIONS)[:, None, None])
    near = np.maximum(1.0 - np.minimum(apart, DIRECTIONS - apart), 0.0)
    strength: Floats = np.sqrt(_shrunk(near * np.hypot(down, across)[:, None], EDGES_PARTS))
    return strength
