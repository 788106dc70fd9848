"""A run whose classes no words describe: labelled images do, and a head judges by them."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import actors.run as job
from actors.models.verifier import Verifier
from actors.run import Reporter, run
from actors.weights.resolve import describe
from balancer import open_manifest
from balancer.cells import Cell
from balancer.cli import main
from balancer.config.load import load_config
from balancer.errors import ManifestError, UsageError
from balancer.manifest import check_run
from balancer.manifest.runfile import load_heads, load_typicality, read_run
from balancer.runs.rejudge import apply
from balancer.storage import open_storage
from balancer.verification.verdict import ImageFlags
from tests.tiny_models import save_image_encoder

pytestmark = pytest.mark.usefixtures("all_here")

WANTED = 12
LABELLED = 56

NONSENSE = [
    "classes.basic.labels=[a wug]",
    "classes.burnt.labels=[a blicket]",
    *(f"classes.{name}=null" for name in ("combined", "mixed", "progression", "segment")),
    "facets=null",
    "dataset.holdout=null",
    "target.per_class=34",
    "verification.unjudged=[off_domain=shuffled]",
    "generation.batch_size=4",
    "actors={generators: 1, device: cpu}",
]
"""Two classes of the demo with labels that its verifier does not know. Its generator knows their prompts."""

RIGHT = {"basic": ["a plain cheese pizza"], "burnt": ["a burnt pizza"]}


def make_config(project, *overrides):
    return load_config(project / "configs/demo.yaml", [*NONSENSE, *overrides])


@pytest.fixture(scope="module")
def begun(project, tmp_path_factory):
    """A run that stopped after some images, and what it noted."""
    out, notes = tmp_path_factory.mktemp("begun") / "run", []
    result = run(make_config(project), out, limit=WANTED // 2, reporter=Reporter(note=notes.append))
    assert (result.state, result.wanted) == ("interrupted", WANTED)
    return out, notes


@pytest.fixture
def copy(begun, tmp_path):
    return shutil.copytree(begun[0], tmp_path / "copy")


def stored(out):
    return open_storage(out, create=False)


def head_file(out):
    [path] = (out / "heads").iterdir()
    return path


def made(out):
    rows = open_manifest(out).to_table(status="all", filter="source = 'synthetic'").to_pylist()
    return {row["id"]: row for row in rows}


def test_words_alone_do_not_tell_the_classes(project, tmp_path):
    with pytest.raises(UsageError, match="class: no value is proven"):
        run(make_config(project, "verification.heads=never"), tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_run_says_that_a_head_judges_and_keeps_it(begun):
    out, notes = begun
    [line] = [note for note in notes if note.startswith("heads: ")]
    assert f"class is judged by words and {LABELLED} labelled images (log loss 0.0" in line
    recorded = json.loads((out / "run.json").read_text())["heads"]["class"]
    data = head_file(out).read_bytes()
    assert recorded["taken"]
    assert (recorded["sha256"], recorded["bytes"]) == (hashlib.sha256(data).hexdigest(), len(data))
    assert recorded["examples"] == {"basic": 30, "burnt": 26}
    assert min(value["auc"] for value in recorded["out_of_fold"]["values"].values()) > 0.95
    assert check_run(stored(out)).problems == ()


def test_scores_are_those_of_the_head(begun):
    out, _ = begun
    rows = [row for row in made(out).values() if row["file_name"]]
    properties = {"class": {"basic": ["a wug"], "burnt": ["a blicket"]}}
    verifier = Verifier("embedded", None, properties, "cpu", 1, temperatures={"class": 5.0})
    pixels = np.stack([np.asarray(Image.open(out / row["file_name"]).convert("RGB")) for row in rows])
    given = pixels, [ImageFlags()] * len(rows), [Cell("basic")] * len(rows)
    heads = load_heads(stored(out), read_run(stored(out)))
    for row, one in zip(rows, verifier.measure(*given, None, heads), strict=True):
        assert one.probabilities["class"][row["class"]] == pytest.approx(row["scores"]["class"], abs=1e-4)
        assert sum(one.probabilities["class"].values()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda path: path.unlink(), "it is missing"),
        (
            lambda path: path.write_bytes(path.read_bytes()[:-8] + bytes(8)),
            "its content is not what its name",
        ),
    ],
)
def test_a_run_whose_head_is_lost_or_changed_does_not_go_on(project, copy, monkeypatch, damage, problem):
    damage(head_file(copy))
    monkeypatch.setattr(job, "connected", lambda *_: pytest.fail("Ray was started"))
    with pytest.raises(ManifestError, match=f"heads/[0-9a-f]{{64}}.safetensors: {problem}"):
        run(make_config(project), copy)
    [found] = check_run(stored(copy)).problems
    assert found.rule == "heads are what run.json names"


def test_which_heads_judge_is_settled_when_a_run_begins(project, copy):
    with pytest.raises(UsageError, match=r"settled when the run began: verification\.heads"):
        run(make_config(project, "verification.heads=never"), copy)


def test_a_run_goes_on_with_the_head_it_began_with_and_accepts_right_images(project, copy, monkeypatch):
    monkeypatch.setattr(job, "study_heads", lambda *_: pytest.fail("heads were fitted again"))
    before = head_file(copy).read_bytes()
    result = run(make_config(project), copy)
    assert (result.state, result.accepted) == ("complete", WANTED)
    assert head_file(copy).read_bytes() == before
    accepted = [row for row in made(copy).values() if row["status"] == "accepted"]
    pixels = np.stack([np.asarray(Image.open(copy / row["file_name"]).convert("RGB")) for row in accepted])
    judge = Verifier("embedded", None, {"class": RIGHT}, "cpu", 1)
    judged = judge.measure(pixels, [ImageFlags()] * WANTED, [Cell("basic")] * WANTED)
    right = [
        one.probabilities["class"][row["class"]] > 0.5 for one, row in zip(judged, accepted, strict=True)
    ]
    assert all(right)


def test_another_limit_is_applied_to_what_the_head_said(copy):
    before = made(copy)
    apply(stored(copy), ["verification.threshold=0.999999"])
    after = made(copy)
    assert {name: row["scores"] for name, row in after.items()} == {
        name: row["scores"] for name, row in before.items()
    }
    for row in after.values():
        if row["reason"] == "class":
            assert row["scores"]["class"] < 0.999999
    assert {row["reason"] for row in after.values()} != {row["reason"] for row in before.values()}


def test_the_same_run_fits_the_same_head(project, begun, tmp_path, monkeypatch):
    monkeypatch.setenv("BALANCER_CACHE", str(tmp_path / "cache"))
    result = CliRunner().invoke(
        main,
        [
            "plan",
            str(project / "configs/demo.yaml"),
            "--json",
            *(part for setting in NONSENSE for part in ("--set", setting)),
        ],
    )
    heads = json.loads(result.stdout)["preflight"]["heads"]
    assert heads == json.loads((begun[0] / "run.json").read_text())["heads"]


def test_with_a_backbone_candidates_are_compared_in_its_features(project, tmp_path):
    """16 channels: its moments are 32 numbers, those of the verifier are more. It was never trained."""
    model = save_image_encoder(tmp_path / "encoder")
    settings = f"verification.backbone.model={model}", "verification.max_challenge_accepted=1"
    config = make_config(project, *settings)
    out = tmp_path / "run"
    assert run(config, out, limit=2).candidates > 0
    info = read_run(stored(out))
    assert info.models["backbone"]["sha256"] == describe(str(model), None, None, "backbone")["sha256"]
    distances = load_typicality(stored(out), info).distances
    assert len(distances["block1.moments"].centre) == 32
    rows = [row for row in made(out).values() if row["file_name"]]
    assert all(0.0 < row["typicality"] <= 1.0 for row in rows)
    with pytest.raises(UsageError, match=r"settled when the run began: verification\.backbone"):
        run(make_config(project, "verification.max_challenge_accepted=1"), out)
