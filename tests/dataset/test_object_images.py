"""Tables whose rows name images in a bucket: `s3://bucket/key`."""

from __future__ import annotations

import uuid

import pytest
from click.testing import CliRunner

from balancer.cli import main
from balancer.config.schema import Config, DatasetConfig
from balancer.dataset.audit import audit, audit_dataset
from balancer.dataset.decoding import decoders
from balancer.dataset.decoding.addresses import object_uri, uri_in_path
from balancer.errors import BalancerError, DatasetError
from balancer.images import UnreadableImage, read_bytes
from balancer.storage import open_storage
from tests.whole.test_layouts import picture, put


@pytest.fixture
def bucket(proxy):
    return open_storage(f"s3://bucket/images/{uuid.uuid4().hex}", create=False)


def table(tmp_path, *rows):
    put(tmp_path / "data" / "labels.csv", "\n".join(["path,label", *rows]))
    return tmp_path / "data" / "labels.csv"


def test_images_in_the_bucket_and_beside_the_table_are_read_alike(bucket, tmp_path):
    bucket.replace("a.png", picture("a"))
    put(tmp_path / "data" / "b.png", picture("b"))
    found = audit(table(tmp_path, f"{bucket.uri}/a.png,cat", "b.png,dog"))
    assert {image.file_name: image.class_name for image in found.images} == {
        f"{bucket.uri}/a.png": "cat",
        "b.png": "dog",
    }
    assert (found.unreadable, found.warnings) == ((), ())


def test_what_cannot_be_read_is_listed_with_the_reason(bucket, tmp_path):
    bucket.replace("note.png", b"not an image")
    bucket.replace("large.png", picture("a") * 2000)
    bucket.replace("a.png", picture("a"))
    names = ("note.png", "large.png", "none.png", "a.png")
    rows = [f"{bucket.uri}/{name},cat" for name in names]
    settings = DatasetConfig(max_image_megabytes=1)
    found = audit(table(tmp_path, *rows, "s3://x/y.png,cat"), settings=settings, max_bytes=1_000_000)
    reasons = {name.rpartition("/")[2]: reason for name, reason in found.unreadable}
    assert reasons.keys() == {"note.png", "large.png", "none.png", "y.png"}
    assert reasons["none.png"] == "no such object in the bucket"
    assert "megabytes, over the limit of 1 (dataset.max_image_megabytes)" in reasons["large.png"]
    assert "image" in reasons["note.png"]
    assert [image.file_name for image in found.images] == [f"{bucket.uri}/a.png"]


@pytest.mark.parametrize("key", [r"a\nb.png", r"\u0007.png"])
def test_a_key_that_no_store_takes_is_one_unreadable_image(bucket, tmp_path, key):
    bucket.replace("a.png", picture("a"))
    rows = [f'{{"path": "{bucket.uri}/{name}", "label": "cat"}}' for name in ("a.png", key)]
    put(tmp_path / "labels.jsonl", "\n".join(rows))
    found = audit(tmp_path / "labels.jsonl")
    assert len(found.images) == 1
    [(_, reason)] = found.unreadable
    assert reason == "a key with control characters cannot be asked for"


def test_a_folder_that_looks_like_an_address_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "balancer.dataset.decoding.object_images.look_at_object", lambda uri: pytest.fail("asked a bucket")
    )
    put(tmp_path / "data" / "s3:" / "bucket" / "a.png", picture("a"))
    put(tmp_path / "data" / "cat" / "b.png", picture("b"))
    found = audit(tmp_path / "data")
    assert ({image.class_name for image in found.images}, found.unreadable) == ({"s3:", "cat"}, ())


def test_an_object_that_did_not_change_is_not_read_again(bucket, tmp_path, monkeypatch):
    bucket.replace("a.png", picture("a"))
    path = table(tmp_path, f"{bucket.uri}/a.png,cat")
    first = audit(path)
    decode = decoders.read_all_images
    monkeypatch.setattr(
        decoders, "read_all_images", lambda root, names, *_: pytest.fail("read") if names else []
    )
    assert audit(path).images == first.images
    monkeypatch.setattr(decoders, "read_all_images", decode)
    bucket.replace("a.png", picture("b"))
    assert audit(path).images[0].sha256 != first.images[0].sha256


def test_a_bucket_that_cannot_be_entered_is_one_line_without_credentials(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("balancer.storage.objects.Patience.unreached_s", 0.1, raising=False)
    path = table(tmp_path, "s3://bucket/a.png,cat")
    with pytest.raises(DatasetError) as caught:
        audit(path)
    assert caught.value.message.startswith("s3://bucket/a.png: cannot look at")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("address", ["s3://user:secret@bucket/a.png", "s3://key:secret/a.png"])
def test_an_address_with_credentials_is_refused_and_not_repeated(tmp_path, address):
    path = table(tmp_path, f"{address},cat")
    for options in ([], ["--json"]):
        shown = CliRunner().invoke(main, ["audit", str(path), *options])
        assert shown.exit_code == 2
        assert "an address in it holds a user or a password" in shown.stderr
        assert "secret" not in shown.output


def test_a_run_copies_such_images_and_cannot_refer_to_them(bucket, tmp_path):
    bucket.replace("a.png", picture("a"))
    path = table(tmp_path, f"{bucket.uri}/a.png,cat")
    assert read_bytes(path.parent / f"{bucket.uri}/a.png", max_bytes=10_000) == picture("a")
    with pytest.raises(UnreadableImage, match="over the limit"):
        read_bytes(path.parent / f"{bucket.uri}/a.png", max_bytes=10)
    document = {"dataset": {"path": str(path)}, "classes": {"cat": {"prompts": ["a cat"]}}}
    document |= {"target": {"per_class": 3}, "output": {"real_images": "reference"}}
    with pytest.raises(BalancerError, match="cannot refer to images in a bucket"):
        audit_dataset(Config.model_validate(document))


@pytest.mark.parametrize("name", ["s3://b/k.png", "s3:/b/k.png"])
def test_an_address_is_recognised_with_the_slash_that_a_path_drops(name):
    assert object_uri(name) == "s3://b/k.png"
    assert uri_in_path(f"/data/set/{name}") == "s3://b/k.png"


@pytest.mark.parametrize("name", ["cat/a.png", "s3/a.png", "https://b/k.png", "file:///etc/passwd", "s3:"])
def test_other_names_are_files(name):
    assert object_uri(name) is None
    assert uri_in_path(f"/data/set/{name}") is None
