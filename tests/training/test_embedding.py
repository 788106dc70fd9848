"""Embeddings of other images, as the manifest of a run has them of its own."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest

import balancer
from actors.embedding import embed_files
from actors.models.verifier import Verifier
from actors.weights import resolve as weights
from balancer import open_manifest
from balancer.errors import DatasetError, UnavailableError, UsageError, WeightsError
from balancer.images import NAMES_OF_FORMATS


def test_an_image_has_the_embedding_that_its_row_has(reference_run):
    manifest = open_manifest(reference_run)
    rows = manifest.to_table(["file_name", "embedding"]).slice(0, 70)
    found = balancer.embed(reference_run, [reference_run / name for name in rows["file_name"].to_pylist()])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.stack(rows["embedding"].to_pylist()), atol=2e-3)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=2e-3)


def test_stored_embeddings_come_with_the_labels_of_their_images(reference_run):
    manifest = open_manifest(reference_run)
    vectors, labels = manifest.embeddings(filter="class in ('burnt', 'segment')")
    kept = manifest.to_table(["class", "embedding"], "class in ('burnt', 'segment')")
    assert [(list(manifest.run.config["classes"]))[label] for label in labels] == kept["class"].to_pylist()
    np.testing.assert_array_equal(vectors, np.stack(kept["embedding"].to_pylist()))
    assert (vectors.dtype, vectors.shape) == (np.float32, (100, manifest.run.embedding_dim))


def test_no_images_have_no_embeddings(reference_run):
    run = open_manifest(reference_run).run
    assert balancer.embed(reference_run, []).shape == (0, run.embedding_dim)


def test_a_file_that_is_no_image_is_named(reference_run, tmp_path):
    (tmp_path / "note.png").write_text("no image")
    with pytest.raises(DatasetError, match=rf"note\.png: not a {NAMES_OF_FORMATS} image"):
        balancer.embed(reference_run, [tmp_path / "note.png"])
    with pytest.raises(DatasetError, match=r"gone\.png: no such file"):
        balancer.embed(reference_run, [tmp_path / "gone.png"])


def test_a_model_that_fails_at_an_image_is_named(reference_run, monkeypatch):
    def fail(*arguments: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Verifier, "measure_files", fail)
    run = open_manifest(reference_run)
    image = reference_run / run.to_table(["file_name"])["file_name"][0].as_py()
    with pytest.raises(WeightsError, match=r"embedded.* cannot be used: .*shapes do not match"):
        balancer.embed(reference_run, [image])


def test_embeddings_of_other_weights_are_not_mixed_with_those_of_the_run(reference_run):
    run = open_manifest(reference_run).run
    other = {**run.models, "verifier": {"model": "embedded", "revision": "f" * 40}}
    with pytest.raises(UnavailableError, match=f"those of the run were {'f' * 40}"):
        embed_files(dataclasses.replace(run, models=other), [])


def test_a_run_that_names_other_weights_than_its_own_has_them_not_loaded(
    reference_run, tmp_path, monkeypatch
):
    run = open_manifest(reference_run).run
    folder = shutil.copytree(weights.resolve("embedded", None, None, "verifier"), tmp_path / "verifier")
    told = weights.describe(str(folder), None, None, "verifier")
    changed = run.config | {"verification": run.config["verification"] | {"model": str(folder)}}
    monkeypatch.setattr("actors.models.verifier.Verifier", lambda *_, **__: pytest.fail("it was loaded"))
    for other in ({"sha256": "0" * 64}, {"revision": "f" * 40}):
        models = {**run.models, "verifier": told | other}
        with pytest.raises(UnavailableError, match="cannot be compared"):
            embed_files(dataclasses.replace(run, config=changed, models=models), [])


def test_simulated_embeddings_are_refused(reference_run):
    run = open_manifest(reference_run).run
    config = run.config | {"actors": {"kind": "simulated"}}
    with pytest.raises(UsageError, match="simulated"):
        embed_files(dataclasses.replace(run, config=config), [])
