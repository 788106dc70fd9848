"""Whatever a run and a hold-out hold, nothing that tests shows in what is trained on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from balancer.config.schema import CopiesConfig
from balancer.errors import UsageError
from balancer.evaluation.examples import Example, counted_classes, deal_validation, keep_apart
from balancer.evaluation.reading import gather, thumbnail
from balancer.images import perceptual_hash, pixel_sha256
from balancer.manifest.query.rows import open_rows
from balancer.storage import open_storage
from tests.evaluation.here import Made, make_run, picture
from tests.evaluation.here import settings as evaluation
from tests.manifest_samples import real, row

LIMITS = CopiesConfig()


def brighter(pixels):
    return np.asarray(ImageEnhance.Brightness(Image.fromarray(pixels)).enhance(1.03))


def example(name, pixels, role, kind="real", parent=None, label=0):
    return Example(
        name, label, role, kind, perceptual_hash(pixels), pixel_sha256(pixels), thumbnail(pixels), parent
    )


PICTURES = {number: picture(0, number, size=64) for number in range(4)}

images = st.builds(
    lambda number, changed, role, kind, parent: (number, changed, role, kind, parent),
    st.sampled_from(sorted(PICTURES)),
    st.booleans(),
    st.sampled_from(["train", "validation", "test"]),
    st.sampled_from(["real", "accepted", "rejected"]),
    st.none() | st.integers(0, 11),
)


@settings(max_examples=150)
@given(st.lists(images, max_size=12))
def test_no_generated_image_copy_or_child_crosses_the_line(drawn):
    """Four pictures, some a little brighter, as anything: each picture is then in one part only."""
    examples, shows = [], {}
    for place, (number, changed, role, kind, parent) in enumerate(drawn):
        pixels = brighter(PICTURES[number]) if changed else PICTURES[number]
        made_from = None if parent is None or kind == "real" else f"{parent}"
        examples.append(example(f"{place}", pixels, role, kind, made_from))
        shows[f"{place}"] = number
    generated = frozenset(each.pixel_sha256 for each in examples if each.kind != "real")
    split = keep_apart(examples, generated, LIMITS)
    parts = {role: split.of(role) for role in ("train", "validation", "test")}
    pictures = {role: {shows[each.id] for each in part} for role, part in parts.items()}
    assert all(each.kind == "real" for role in ("validation", "test") for each in parts[role])
    assert not pictures["train"] & (pictures["validation"] | pictures["test"])
    assert not pictures["validation"] & pictures["test"]
    held_out = {each.id for each in examples if each.role != "train"}
    assert not {each.parent for each in parts["train"]} & (held_out | split.left_out.keys())
    assert len(split.examples) + len(split.left_out) == len(examples)


def test_what_was_made_of_a_held_out_image_over_two_steps_is_left_out():
    test = example("test", picture(0, 1), "test")
    child = example("child", picture(0, 2), "train", "rejected", "test")
    grandchild = example("grandchild", picture(0, 3), "train", "accepted", "child")
    assert [each.id for each in keep_apart([test, child, grandchild], frozenset(), LIMITS).examples] == [
        "test"
    ]


def test_a_generated_image_among_the_held_out_ones_does_not_test():
    held_out = example("holdout/a.png", picture(0, 1), "test")
    split = keep_apart([held_out], frozenset([held_out.pixel_sha256]), LIMITS)
    assert split.examples == ()
    assert "generated" in split.left_out["holdout/a.png"]


def test_one_in_four_held_out_images_chooses_where_nothing_is_set_apart_for_that():
    held_out = [
        example(f"{label}-{n}", picture(label, n), "test", label=label) for label in (0, 1) for n in range(8)
    ]
    dealt = deal_validation(held_out)
    assert sorted(each.label for each in dealt if each.role == "validation") == [0, 0, 1, 1]
    assert deal_validation(reversed(held_out)) == dealt


def test_a_run_gives_its_splits_and_leaves_copies_of_test_images_out_of_training(tmp_path):
    stolen = [
        (row("basic/dim/0900", split="train"), brighter(picture(0, 15))),
        (real("copied.png", split="train"), picture(0, 15)),
    ]
    run = make_run(tmp_path / "run", Made(train=3, validation=3, test=12, accepted=3), lambda: stolen)
    storage = open_storage(run, create=False)
    gathered = gather(open_rows(storage), storage, evaluation(), 16)
    counts = {role: len(gathered.split.of(role)) for role in ("train", "validation", "test")}
    assert counts == {"train": 12, "validation": 6, "test": 24}
    assert not {"real/copied.png", "basic/dim/0900-1"} & {each.id for each in gathered.split.examples}
    assert gathered.array("test").shape == (24, 16, 16, 3)


def test_a_hold_out_folder_tests_where_the_run_has_no_test_images(tmp_path):
    for name, label in (("basic", 0), ("burnt", 1)):
        (tmp_path / "holdout" / name).mkdir(parents=True)
        for number in range(8):
            Image.fromarray(picture(label, 500 + number)).save(tmp_path / "holdout" / name / f"{number}.png")
    Image.fromarray(picture(0, 1000)).save(tmp_path / "holdout" / "basic" / "generated.png")
    run = make_run(tmp_path / "run", Made(train=3, validation=0, test=0, accepted=3))
    storage = open_storage(run, create=False)
    config = evaluation()
    data = config.dataset.model_copy(update={"holdout": str(tmp_path / "holdout")})
    gathered = gather(open_rows(storage), storage, config.model_copy(update={"dataset": data}), 16)
    counts = {role: len(gathered.split.of(role)) for role in ("validation", "test")}
    assert counts == {"validation": 4, "test": 12}
    assert all(each.id.startswith("holdout/") for each in gathered.split.of("test"))
    assert "holdout/basic/generated.png" in gathered.split.left_out


def test_kept_rejected_candidates_are_an_arm_and_missing_ones_are_counted(tmp_path):
    from balancer.manifest.layout import rejected_path
    from tests.evaluation.here import rejected_row

    rows = [rejected_row("basic", 900 + number) for number in range(3)]
    run = make_run(
        tmp_path / "run", Made(2, 2, 2, 2),
        lambda: [(each, picture(0, 900 + number)) for number, each in enumerate(rows)],
    )  # fmt: skip
    storage = open_storage(run, create=False)
    manifest = open_rows(storage)
    assert "0 of 3 rejected candidates" in gather(manifest, storage, evaluation(), 16).no_unfiltered
    for number, each in enumerate(rows):
        path = run / rejected_path(each["id"], each["reason"])
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(0, 900 + number)).save(path)
    gathered = gather(manifest, storage, evaluation(), 16)
    assert gathered.no_unfiltered == ""
    assert [each.kind for each in gathered.split.of("train")].count("rejected") == 3


def test_too_few_held_out_images_are_refused_with_the_number_needed():
    train = [example("a", picture(0, 1), "train"), example("b", picture(0, 2), "train", "accepted")]
    few = [example(f"t{n}", picture(0, 10 + n), "test") for n in range(4)]
    with pytest.raises(
        UsageError, match=r"at least 10 for the test.*basic 4 and 0, burnt 0 and 0"
    ) as refused:
        counted_classes(keep_apart([*train, *few], frozenset(), LIMITS), ("basic", "burnt"), 10)
    assert "14 held-out images" in refused.value.hint


def test_without_real_or_generated_training_images_there_is_nothing_to_compare():
    held_out = [
        example(f"{role}{label}{n}", picture(label, 10 * k + n, size=64), role, label=label)
        for label in (0, 1)
        for k, role in enumerate(("validation", "test"))
        for n in range(5)
    ]
    for kind, message in (("real", "no accepted image"), ("accepted", "no real training image")):
        one = replace(example("one", picture(0, 99, size=64), "train"), kind=kind)
        split = keep_apart([*held_out, one], frozenset(), LIMITS)
        with pytest.raises(UsageError, match=message):
            counted_classes(split, ("basic", "burnt"), 5)


def test_what_was_rejected_but_made_from_a_copy_of_a_test_image_is_in_no_arm(tmp_path):
    from balancer.manifest.layout import rejected_path
    from tests.evaluation.here import rejected_row

    child = rejected_row("basic", 900) | {"parent_id": "real/copied.png"}
    extra = [(real("copied.png", split="train"), picture(0, 7)), (child, picture(0, 900))]
    run = make_run(tmp_path / "run", Made(train=2, validation=2, test=4, accepted=2), lambda: extra)
    path = run / rejected_path(child["id"], child["reason"])
    path.parent.mkdir(parents=True)
    Image.fromarray(picture(0, 900)).save(path)
    storage = open_storage(run, create=False)
    gathered = gather(open_rows(storage), storage, evaluation(), 16)
    assert not [each for each in gathered.split.of("train") if each.kind == "rejected"]
    assert "real/copied.png" in gathered.split.left_out["rejected/basic/dim/0900-1"]


def test_a_training_image_whose_file_became_a_test_image_is_left_out(tmp_path):
    run = make_run(tmp_path / "run", Made(train=2, validation=2, test=2, accepted=2))
    storage = open_storage(run, create=False)
    manifest = open_rows(storage)
    rows = manifest.to_table(["id", "file_name"]).to_pylist()
    files = {row["id"]: run / row["file_name"] for row in rows}
    files["real/basic-train-0.png"].write_bytes(files["real/basic-test-1.png"].read_bytes())
    split = gather(manifest, storage, evaluation(), 16).split
    assert "real/basic-test-1.png" in split.left_out["real/basic-train-0.png"]


def test_a_picture_tests_once_however_often_it_is_there():
    copies = [example(f"copy{n}", picture(0, 1, size=64), "test") for n in range(30)]
    other = example("other", picture(0, 2, size=64), "test")
    changed = example("saved again", brighter(picture(0, 1, size=64)), "test")
    split = keep_apart([*copies, changed, other], frozenset(), LIMITS)
    assert [each.id for each in split.of("test")] == ["copy0", "other"]
    assert split.left_out["copy1"] == "shows what copy0 shows, which counts already"
