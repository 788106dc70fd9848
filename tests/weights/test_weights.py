from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from actors.weights import hashes as weight_hashes
from actors.weights import resolve as weights
from actors.weights.file_rules import ModelKind, needed_files
from actors.weights.hashes import combine_hashes
from balancer.config.schema import Config
from balancer.errors import ConfigError, WeightsError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SMALL_CONFIG = {"model_cfg": {"embed_dim": 8, "vision_cfg": {}, "text_cfg": {}}}


def index(**components: list[str | None]) -> dict[str, object]:
    return {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1", **components}


UNET_AND_SCHEDULER = index(
    unet=["diffusers", "UNet2DConditionModel"],
    scheduler=["diffusers", "DDIMScheduler"],
    image_encoder=[None, None],
)


def safetensors(data: bytes) -> bytes:
    """A file of one tensor."""
    tensor = {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}
    header = json.dumps({"a": tensor}).encode()
    return len(header).to_bytes(8, "little") + header + data


WEIGHTS = safetensors(b"weights")


def pipeline_files(unet_weights: str = "diffusion_pytorch_model.safetensors") -> dict[str, bytes]:
    return {
        "model_index.json": json.dumps(UNET_AND_SCHEDULER).encode(),
        "unet/config.json": b"{}",
        f"unet/{unet_weights}": WEIGHTS,
        "scheduler/scheduler_config.json": b"{}",
    }


def verifier_files(weights_name: str = "open_clip_model.safetensors") -> dict[str, bytes]:
    return {"open_clip_config.json": json.dumps(SMALL_CONFIG).encode(), weights_name: WEIGHTS}


def transformers_files(weights_name: str = "model.safetensors") -> dict[str, bytes]:
    return {
        "config.json": b'{"model_type": "vit"}',
        "preprocessor_config.json": b"{}",
        "chat_template.jinja": b"{{ messages }}",
        weights_name: WEIGHTS,
    }


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def refusal(model: str | Path, kind: ModelKind = "generator", variant: str | None = None) -> str:
    with pytest.raises(WeightsError) as caught:
        weights.check(str(model), None, variant, kind)
    assert caught.value.exit_code == 4
    assert caught.value.hint
    assert "\n" not in caught.value.message
    return caught.value.message


def test_embedded_models_are_in_the_package():
    found = weights.check("embedded", None, None, "verifier")
    assert found.place == "embedded"
    assert found.folder == Path(weights.__file__).parents[2] / "balancer" / "embedded" / "verifier"


def test_identity_of_embedded_models_follows_their_content(tmp_path):
    first = weights.identity("embedded", None, write(tmp_path, verifier_files()))
    (tmp_path / "open_clip_model.safetensors").write_bytes(safetensors(b"other weights"))
    assert weights.identity("embedded", None, tmp_path) != first
    assert len(first) == 40


def test_a_folder_with_safetensors_is_accepted_as_it_is(tmp_path):
    folder = write(tmp_path, pipeline_files())
    assert weights.resolve(str(folder), None, None, "generator") == folder


def test_a_missing_folder_is_named():
    assert refusal("/no/such/model") == "/no/such/model: no such folder"
    assert refusal("some/verifier", "verifier") == "some/verifier: no such folder"
    assert refusal("/no/such/judge", "second judge") == "/no/such/judge: no such folder"


def test_a_folder_of_another_layout_is_refused_with_the_file_it_lacks(tmp_path):
    assert refusal(write(tmp_path, verifier_files())).endswith("the folder has no model_index.json")


def test_a_single_file_checkpoint_is_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    assert refusal(file).endswith("is a file; models are loaded from folders")


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "model.ckpt", "model.pt", "model.pth"])
def test_generator_weights_in_pickle_form_only_are_refused_by_name(tmp_path, name):
    message = refusal(write(tmp_path, pipeline_files(name)))
    assert f"only pickled weights (unet/{name})" in message


@pytest.mark.parametrize("name", ["open_clip_pytorch_model.bin", "model.pt"])
def test_verifier_weights_in_pickle_form_only_are_refused_by_name(tmp_path, name):
    assert f"only pickled weights ({name})" in refusal(write(tmp_path, verifier_files(name)), "verifier")


def test_pickles_beside_safetensors_are_ignored(tmp_path):
    write(tmp_path, pipeline_files() | {"unet/diffusion_pytorch_model.bin": b"", "danger.ckpt": b""})
    assert weights.check(str(tmp_path), None, None, "generator").place == "folder"


@pytest.mark.parametrize("library", ["my_module", "pipeline.py", "os", "torch"])
def test_components_of_other_libraries_are_refused(tmp_path, library):
    files = pipeline_files() | {"model_index.json": json.dumps(index(unet=[library, "Unet"])).encode()}
    assert f"component unet is from library {library!r}" in refusal(write(tmp_path, files))


def test_a_pipeline_class_from_a_file_is_refused(tmp_path):
    custom = UNET_AND_SCHEDULER | {"_class_name": ["pipeline", "MyPipeline"]}
    files = pipeline_files() | {"model_index.json": json.dumps(custom).encode()}
    assert "names no pipeline class" in refusal(write(tmp_path, files))


def test_a_component_cannot_point_out_of_its_folder(tmp_path):
    escaping = UNET_AND_SCHEDULER | {"../other": ["diffusers", "UNet2DConditionModel"]}
    files = pipeline_files() | {"model_index.json": json.dumps(escaping).encode()}
    assert "'../other' is not a folder name" in refusal(write(tmp_path, files))


def test_a_list_of_numbers_is_a_setting_of_the_pipeline_and_no_component(tmp_path):
    files = pipeline_files()
    settings = {"text_encoder_select_layers": [2, 5, 8]}  # as Krea 2 has
    files["model_index.json"] = json.dumps(UNET_AND_SCHEDULER | settings).encode()
    folder = write(tmp_path, files)
    assert weights.check(str(folder), None, None, "generator").place == "folder"


def test_a_missing_component_is_named(tmp_path):
    files = pipeline_files()
    del files["scheduler/scheduler_config.json"]
    assert refusal(write(tmp_path, files)).endswith("component scheduler is missing")


def test_missing_shards_are_counted(tmp_path):
    write(tmp_path, pipeline_files("diffusion_pytorch_model-00001-of-00003.safetensors"))
    assert refusal(tmp_path).endswith("component unet has 1 of 3 weight files")


def test_an_unreadable_index_is_named(tmp_path):
    write(tmp_path, pipeline_files() | {"model_index.json": b"{"})
    assert refusal(tmp_path).startswith(f"{tmp_path}: model_index.json: ")


@pytest.mark.parametrize(
    "name",
    ["diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.fp16-00001-of-00001.safetensors"],
)
def test_a_variant_must_be_asked_for_by_name(tmp_path, name):
    write(tmp_path, pipeline_files(name))
    assert refusal(tmp_path).endswith("has only weights of variant fp16")
    assert weights.check(str(tmp_path), None, "fp16", "generator").place == "folder"


def test_a_variant_nobody_has_is_refused(tmp_path):
    assert "no weights of variant 'fp16'" in refusal(write(tmp_path, pipeline_files()), variant="fp16")


def test_of_several_variants_only_the_wanted_weights_are_needed():
    names = [*pipeline_files(), "unet/diffusion_pytorch_model.fp16.safetensors", "big.safetensors", "x.py"]
    wanted = needed_files(names, UNET_AND_SCHEDULER, "fp16", "generator", "m")
    assert [name for name in wanted if name.endswith(".safetensors")] == [
        "unet/diffusion_pytorch_model.fp16.safetensors"
    ]
    plain = needed_files(names, UNET_AND_SCHEDULER, None, "generator", "m")
    assert set(plain) == set(pipeline_files())


def test_of_several_weights_the_verifier_needs_the_one_open_clip_takes():
    names = ["model.safetensors", "open_clip_model.safetensors", "open_clip_config.json", "sub/merges.txt"]
    wanted = needed_files(names, SMALL_CONFIG, None, "verifier", "m")
    assert wanted == ["open_clip_config.json", "open_clip_model.safetensors"]


@pytest.mark.parametrize(
    "towers",
    [{"text_cfg": {"hf_model_name": "org/text"}}, {"vision_cfg": {"timm_model_name": "hf-hub:org/image"}}],
)
def test_towers_from_a_second_repository_are_refused(tmp_path, towers):
    files = verifier_files() | {"open_clip_config.json": json.dumps({"model_cfg": towers}).encode()}
    assert "another repository" in refusal(write(tmp_path, files), "verifier")


TRANSFORMERS_KINDS: tuple[ModelKind, ...] = ("second judge", "safety checker")


@pytest.mark.parametrize("kind", TRANSFORMERS_KINDS)
@pytest.mark.parametrize(
    "shards", [("model.safetensors",), [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]]
)
def test_a_transformers_folder_with_safetensors_is_accepted_as_it_is(tmp_path, kind, shards):
    for name in shards:
        write(tmp_path, transformers_files(name))
    assert weights.resolve(str(tmp_path), None, None, kind) == tmp_path


@pytest.mark.parametrize("kind", TRANSFORMERS_KINDS)
def test_transformers_weights_in_pickle_form_only_are_refused_by_name(tmp_path, kind):
    message = refusal(write(tmp_path, transformers_files("pytorch_model.bin")), kind)
    assert "the model has only pickled weights (pytorch_model.bin)" in message


def test_missing_shards_of_a_transformers_model_are_counted(tmp_path):
    write(tmp_path, transformers_files("model-00001-of-00003.safetensors"))
    assert refusal(tmp_path, "second judge").endswith("the model has 1 of 3 weight files")


@pytest.mark.parametrize("kind", TRANSFORMERS_KINDS)
@pytest.mark.parametrize(
    "name", ["config.json", "processor_config.json", "preprocessor_config.json", "tokenizer_config.json"]
)
@pytest.mark.parametrize("depth", [0, 1])
def test_a_transformers_model_that_brings_code_is_refused(tmp_path, kind, name, depth):
    config: dict[str, object] = {"auto_map": {"AutoModel": "modeling_own.Own"}}
    nested = config if depth == 0 else {"text_config": config}
    write(tmp_path, transformers_files() | {name: json.dumps(nested).encode(), "modeling_own.py": b""})
    assert f"{name} has an auto_map" in refusal(tmp_path, kind)


def test_a_transformers_model_needs_its_own_folder_alone():
    names = [*transformers_files(), "onnx/model.safetensors", "original/params.json", "own.py", "big.bin"]
    assert set(needed_files(names, {}, None, "safety checker", "m")) == set(transformers_files())


def test_there_is_no_embedded_second_judge():
    assert refusal("embedded", "second judge") == "embedded: no such folder"


@pytest.mark.parametrize("kind", TRANSFORMERS_KINDS)
def test_the_hint_of_a_missing_judge_names_its_own_section(kind):
    with pytest.raises(WeightsError) as caught:
        weights.check("/no/such/model", None, None, kind)
    section = {"second judge": "verification.second_judge", "safety checker": "verification.safety"}[kind]
    assert caught.value.hint.startswith(f"set {section}.model to a folder in transformers layout")
    assert "embedded" not in caught.value.hint


def test_a_config_names_the_models_it_needs():
    values: dict[str, Any] = {"classes": {"a": {"prompts": ["an a"]}}, "target": {"per_class": 1}}
    assert list(weights.wanted_models(Config.model_validate(values))) == ["generator", "verifier"]
    values["verification"] = {
        "second_judge": {"model": "org/judge", "revision": COMMIT},
        "safety": {"model": "org/safe", "revision": COMMIT},
    }
    wanted = weights.wanted_models(Config.model_validate(values))
    assert wanted["second judge"] == ("org/judge", COMMIT, None)
    assert wanted["safety checker"] == ("org/safe", COMMIT, None)


@pytest.mark.parametrize("revision", [None, "main", COMMIT[:12], COMMIT.upper()])
@pytest.mark.parametrize(
    ("model", "kind", "knob"),
    [
        ("org/pipe", "generator", "generation"),
        ("hf-hub:org/clip", "verifier", "verification"),
        ("org/judge", "second judge", "verification.second_judge"),
        ("org/safe", "safety checker", "verification.safety"),
    ],
)
def test_a_hub_model_needs_a_whole_commit(revision, model, kind, knob):
    with pytest.raises(ConfigError, match=rf"{knob}\.revision: .*40 hex digits"):
        weights.check(model, revision, None, kind)


def test_a_description_tells_what_a_run_must_know_before_loading(tmp_path):
    folder = str(write(tmp_path, verifier_files()))
    assert weights.describe(folder, None, None, "verifier") == {
        "model": folder,
        "revision": None,
        "sha256": combine_hashes({"open_clip_model.safetensors": hashlib.sha256(WEIGHTS).hexdigest()}),
        "embedding_dim": 8,
    }


def test_the_hash_of_weights_is_of_those_that_are_loaded_and_of_their_names(tmp_path):
    def sha256(files):
        folder = write(tmp_path / str(len(list(tmp_path.iterdir()))), files)
        return weights.describe(str(folder), None, None, "generator")["sha256"]

    plain = sha256(pipeline_files())
    assert sha256(pipeline_files() | {"other.safetensors": b"not loaded", "README.md": b"text"}) == plain
    changed = pipeline_files() | {"unet/diffusion_pytorch_model.safetensors": safetensors(b"others")}
    assert sha256(changed) != plain


def test_a_large_file_is_hashed_once_and_again_when_it_was_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(weight_hashes, "REMEMBERED_FROM_BYTES", 0)
    read = []
    original = weight_hashes._read_sha256
    monkeypatch.setattr(weight_hashes, "_read_sha256", lambda path: read.append(path) or original(path))
    monkeypatch.setenv("BALANCER_CACHE", str(tmp_path / "cache"))
    folder = write(tmp_path / "model", {"a.safetensors": b"one"})
    before = (folder / "a.safetensors").stat()
    first = weight_hashes.weights_sha256(folder, ["a.safetensors"])
    assert weight_hashes.weights_sha256(folder, ["a.safetensors"]) == first
    assert len(read) == 1
    (folder / "a.safetensors").write_bytes(b"two")
    os.utime(folder / "a.safetensors", ns=(before.st_atime_ns, before.st_mtime_ns))  # as if untouched
    assert weight_hashes.weights_sha256(folder, ["a.safetensors"]) != first
    for note in (tmp_path / "cache" / "weights").iterdir():
        note.write_bytes(b"[damaged")
    assert weight_hashes.weights_sha256(folder, ["a.safetensors"]) != first
    assert len(read) == 3


def test_no_model_library_is_imported_to_look_for_weights():
    code = "import sys, actors.weights.resolve as w; w.check('embedded', None, None, 'verifier');"
    code += "assert not {'torch', 'diffusers', 'transformers', 'ray'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class Hub:
    """A model hub on this machine with one repository at one commit; counts what it is asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.status = 200

    def sibling(self, name: str, data: bytes) -> dict[str, Any]:
        told: dict[str, Any] = {"rfilename": name, "size": len(data)}
        if name.endswith(".safetensors"):
            told["lfs"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "pointerSize": 1}
        return told

    def answer(self, path: str) -> tuple[int, bytes, dict[str, str]]:
        self.requests.append(path)
        if self.status != 200:
            return self.status, b"{}", {"X-Error-Code": "RepoNotFound"}
        if path == f"/api/models/org/model/revision/{COMMIT}":
            siblings = [self.sibling(name, data) for name, data in self.files.items()]
            return 200, json.dumps({"id": "org/model", "sha": COMMIT, "siblings": siblings}).encode(), {}
        if path == f"/api/models/org/model/tree/{COMMIT}":
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": f"{len(data):040x}"}
                for name, data in self.files.items()
            ]
            return 200, json.dumps(tree).encode(), {}
        name = path.removeprefix(f"/org/model/resolve/{COMMIT}/")
        if name in self.files:
            return 200, self.files[name], {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT}
        return 404, b"{}", {"X-Error-Code": "RepoNotFound"}


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[Hub]:
    hub = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body, headers = hub.answer(unquote(urlsplit(self.path).path))
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    use_hub(monkeypatch, tmp_path / "cache", f"http://127.0.0.1:{server.server_port}")
    yield hub
    server.shutdown()
    thread.join()
    server.server_close()


def use_hub(monkeypatch: pytest.MonkeyPatch, cache: Path, endpoint: str) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def test_a_hub_model_is_downloaded_without_what_loading_does_not_take(hub):
    hub.files = pipeline_files() | {"unet/diffusion_pytorch_model.bin": b"pickle", "huge.safetensors": b"h"}
    folder = weights.resolve("org/model", COMMIT, None, "generator")
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == set(
        pipeline_files()
    )


def test_a_hub_verifier_is_downloaded_by_its_prefix(hub):
    hub.files = verifier_files()
    folder = weights.resolve("hf-hub:org/model", COMMIT, None, "verifier")
    assert (folder / "open_clip_model.safetensors").read_bytes() == WEIGHTS


def test_a_hub_judge_is_downloaded_without_what_loading_does_not_take(hub):
    hub.files = transformers_files() | {"pytorch_model.bin": b"pickle", "own.py": b"code"}
    folder = weights.resolve("org/model", COMMIT, None, "second judge")
    assert {path.name for path in folder.iterdir()} == set(transformers_files())
    hub.requests.clear()
    found = weights.check("org/model", COMMIT, None, "second judge")
    assert (found, hub.requests) == (weights.Availability("cache", folder), [])


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_code_on_the_hub_is_refused_before_anything_large_is_downloaded(hub, name):
    hub.files = transformers_files() | {name: b'{"auto_map": {"AutoModel": "own.Own"}}'}
    for _ in range(2):  # also once the configs are in the cache
        assert f"{name} has an auto_map" in hub_refusal("safety checker")
    assert not [path for path in hub.requests if path.endswith(".safetensors")]


def test_an_index_on_the_hub_that_leads_elsewhere_is_refused_once_it_is_there(hub):
    shard = "model-00001-of-00001.safetensors"
    index = json.dumps({"weight_map": {"a": "../../x.safetensors"}}).encode()
    hub.files = transformers_files(shard) | {"model.safetensors.index.json": index}
    for find in (weights.resolve, weights.check, weights.describe):
        with pytest.raises(WeightsError, match="not one of its weight files"):
            find("org/model", COMMIT, None, "safety checker")


def test_a_downloaded_model_is_found_without_asking_the_hub(hub):
    hub.files = pipeline_files()
    folder = weights.resolve("org/model", COMMIT, None, "generator")
    hub.requests.clear()
    assert weights.check("org/model", COMMIT, None, "generator") == weights.Availability("cache", folder)
    assert hub.requests == []


def test_checking_downloads_no_weights_and_tells_their_size(hub):
    hub.files = pipeline_files()
    found = weights.check("org/model", COMMIT, None, "generator")
    assert found.place == "hub"
    assert found.missing_bytes == sum(map(len, pipeline_files().values()))
    assert not [path for path in hub.requests if path.endswith(".safetensors")]


def test_the_hash_of_weights_is_known_before_they_are_downloaded_and_is_that_of_what_came(hub):
    hub.files = pipeline_files()
    told = weights.describe("org/model", COMMIT, None, "generator")
    assert not [path for path in hub.requests if path.endswith(".safetensors")]
    folder = weights.resolve("org/model", COMMIT, None, "generator")
    assert weights.describe("org/model", COMMIT, None, "generator") == told
    target = (folder / "unet/diffusion_pytorch_model.safetensors").resolve()
    target.chmod(0o644)
    target.write_bytes(safetensors(b"tampered"))
    assert weights.describe("org/model", COMMIT, None, "generator")["sha256"] != told["sha256"]


def test_an_interrupted_download_is_completed(hub):
    hub.files = pipeline_files()
    folder = weights.resolve("org/model", COMMIT, None, "generator")
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    assert weights.check("org/model", COMMIT, None, "generator").place == "hub"
    assert weights.resolve("org/model", COMMIT, None, "generator") == folder
    assert (folder / "unet/diffusion_pytorch_model.safetensors").read_bytes() == WEIGHTS


def test_pickles_on_the_hub_are_refused_before_anything_large_is_downloaded(hub):
    hub.files = pipeline_files("diffusion_pytorch_model.bin")
    assert "only pickled weights" in hub_refusal()
    assert not [path for path in hub.requests if path.endswith(".bin")]


def test_foreign_components_on_the_hub_are_refused(hub):
    hub.files = pipeline_files() | {"model_index.json": json.dumps(index(unet=["evil", "Unet"])).encode()}
    assert "library 'evil'" in hub_refusal()
    assert "library 'evil'" in hub_refusal(), "also once the index is in the cache"


def test_a_repository_of_another_layout_is_refused(hub):
    hub.files = verifier_files()
    assert "not in diffusers layout" in hub_refusal()


def test_a_repository_that_is_not_there_is_named(hub):
    hub.status = 404
    assert hub_refusal() == f"org/model at revision {COMMIT} does not exist on the hub, or is private"


def test_a_hub_that_cannot_be_reached_gives_one_helpful_line(monkeypatch, tmp_path):
    use_hub(monkeypatch, tmp_path, "http://127.0.0.1:9")
    message = hub_refusal()
    assert message.startswith(f"org/model at revision {COMMIT} is not on this machine")


def hub_refusal(kind: ModelKind = "generator") -> str:
    with pytest.raises(WeightsError) as caught:
        weights.check("org/model", COMMIT, None, kind)
    assert caught.value.hint
    assert "\n" not in caught.value.message
    return caught.value.message
