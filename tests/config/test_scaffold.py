from __future__ import annotations

import csv
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from actors.real_images import RealImages, run_preflight
from balancer.cells import CLASS_PROPERTY
from balancer.cli import main
from balancer.cli.datasets import init
from balancer.config.defaults import in_words
from balancer.config.load import load_config
from balancer.config.schema import Config
from balancer.dataset.audit import audit, audit_dataset, audit_holdout, match_classes
from balancer.errors import DatasetError
from balancer.planning.plan import make_plan
from balancer.scaffold import MAX_CELLS_PER_CLASS, starter_config
from balancer.text.names import composed
from balancer.verification.preflight import Preflight

Rows = Mapping[str, Mapping[str, str]]


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def dataset(counts: Mapping[str, int], rows: Rows | None = None, *, at: str = "data") -> str:
    """Class folders with so many images `0.png`, `1.png`..., and a metadata table if there are rows."""
    for place, (name, count) in enumerate(counts.items()):
        folder = Path(at, name)
        folder.mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (8, 8), (number, place, 0)).save(folder / f"{number}.png")
    if rows:
        with Path(at, "metadata.csv").open("w", newline="", encoding="utf-8") as file:
            columns = dict.fromkeys(column for row in rows.values() for column in row)
            table = csv.DictWriter(file, ["file_name", *columns])
            table.writeheader()
            table.writerows({"file_name": name, **row} for name, row in rows.items())
    return at


def columns(class_name: str, **values: Iterable[str]) -> Rows:
    """A row for each image of a class, with values of each column in turn."""
    return {
        f"{class_name}/{number}.png": dict(zip(values, row, strict=True))
        for number, row in enumerate(zip(*values.values(), strict=True))
    }


def starter(at: str) -> Config:
    """The config that `init` writes for a dataset, read back."""
    Path("job.yaml").write_text(starter_config(at), encoding="utf-8", newline="")
    return load_config("job.yaml")


def planned(config: Config) -> int:
    return make_plan(config, match_classes(audit_dataset(config), config)).total


def invoke(*args: str) -> Result:
    return CliRunner().invoke(main, list(args))


# Classes and target


def test_classes_are_the_folders_and_the_target_is_the_largest():
    config = starter(dataset({"cat": 3, "dog": 1, "owl": 0}))
    assert list(config.classes) == ["cat", "dog", "owl"]
    assert config.target.per_class == 3
    assert config.dataset.path == "data"
    assert planned(config) == 5


def test_counts_stand_beside_the_classes():
    text = starter_config(dataset({"cat": 3, "dog": 1, "owl": 0}))
    assert [
        line for line in text.splitlines() if line.startswith("  ") and line.endswith(("image", "images"))
    ] == [
        "  cat: # 3 images",
        "  dog: # 1 image",
        "  owl: # no images",
    ]


def test_a_dataset_without_any_image_has_a_target_to_choose():
    text = starter_config(dataset({"cat": 0}))
    assert "per_class: 50 # no class has images: choose a number" in text


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("golden_retriever", "golden retriever"),
        ("half-and-half", "half and half"),
        ("--x--", "x"),
        ("burnt", "burnt"),
        ("naïve café", "naïve café"),
        ("---", "---"),
        ("डोसा", "डोसा"),
        ("पानी_पूरी", "पानी पूरी"),
        ("ก๋วยเตี๋ยว", "ก๋วยเตี๋ยว"),
        ("ශ්\u200dරී_x", "ශ්\u200dරී x"),
        ("e\u0301clair", "e\u0301clair"),
        ("king's_cake", "king's cake"),
        ("'quoted'", "quoted"),
        ("model-1.5", "model 1.5"),
        ("St. Moritz", "St Moritz"),
        ("-1", "-1"),
        ("+1", "+1"),
        ("2024-01-02", "2024 01 02"),
        ("<30", "<30"),
        (">= 30", ">= 30"),
        ("C++", "C++"),
        ("C#", "C#"),
        ("rain+snow", "rain snow"),
        ("100%", "100%"),
    ],
)
def test_a_name_is_said_in_words(name: str, words: str):
    assert in_words(name) == words


def test_names_that_read_alike_have_prompts_of_their_own():
    names = ("v1_2", "v1-2", "a=b", "a;b", "null", "null.", "dog_1")
    rows = {f"{name}/{place}.png": {"mark": ("x_y", "x-y")[place]} for name in names for place in (0, 1)}
    Path("c.yaml").write_text(starter_config(dataset(dict.fromkeys(names, 2), rows)))
    config = load_config("c.yaml")
    prompts = {name: config.classes[name].prompts[0] for name in names}
    assert len(set(prompts.values())) == len(names)
    assert prompts["v1-2"] == "a photo of a v1-2"
    assert prompts["dog_1"] == "a photo of a dog 1"
    assert [value.prompts[0] for value in config.facets["mark"].values.values()] == ["x-y mark", "x_y mark"]


def test_prompts_are_a_photo_of_each_class_with_a_request_to_edit_them():
    at = dataset({"golden_retriever": 1})
    assert starter(at).classes["golden_retriever"].prompts == ("a photo of a golden retriever",)
    assert "# EDIT the prompts" in starter_config(at)


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("empty", "a photo of an empty"),
        ("open_box", "a photo of an open box"),
        ("Apple", "a photo of an Apple"),
        ("éclair", "a photo of an éclair"),
        ("e\u0301clair", "a photo of an éclair"),
        ("Äpfel", "a photo of an Äpfel"),
        ("crème_brûlée", "a photo of a crème brûlée"),
        ("unicorn", "a photo of a unicorn"),
        ("umbrella", "a photo of an umbrella"),
        ("uneven_edge", "a photo of an uneven edge"),
        ("unidentified", "a photo of an unidentified"),
        ("used_car", "a photo of a used car"),
        ("hourglass", "a photo of an hourglass"),
        ("house", "a photo of a house"),
        ("one-way_sign", "a photo of a one way sign"),
        ("7up", "a photo of a 7up"),
        ("寿司", "a photo of a 寿司"),
    ],
)
def test_a_prompt_has_the_article_of_its_class_and_its_accents(name: str, prompt: str):
    Path("job.yaml").write_text(starter_config(dataset({name: 1})), encoding="utf-8")
    assert f"- {prompt}\n" in Path("job.yaml").read_text(encoding="utf-8")
    [of_class] = load_config("job.yaml").classes.values()
    assert of_class.prompts == (prompt,)


@pytest.mark.parametrize("name", ["x" * 101, "a\tb", "a\nb"])
def test_a_class_that_no_config_can_name_is_refused(name: str):
    with pytest.raises(DatasetError, match="1 class folder cannot be named in a config") as caught:
        starter_config(dataset({name: 0, "dog": 1}))
    assert "at most 100 characters" in caught.value.hint


@pytest.mark.parametrize("name", [" cat", "cat ", "  cat\u00a0"])
def test_spaces_around_a_folders_name_are_no_part_of_the_class(name: str):
    assert list(starter(dataset({name: 1, "dog": 1})).classes) == ["cat", "dog"]


TRICKY_NAMES = st.sampled_from(
    [
        "yes",
        "No",
        "null",
        "~",
        "12",
        "1e5",
        "-",
        "- a",
        "a: b",
        "a #b",
        "#a",
        '"a"',
        "'a'",
        "{a}",
        "a\\b",
        "ü",
        "日本",
    ]
)
FOLDER_NAMES = TRICKY_NAMES | st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/"), min_size=1
).map(lambda name: composed(name)[:60].strip().lstrip(".").strip()).filter(bool)  # as the audit names them


@settings(max_examples=50)
@given(st.lists(FOLDER_NAMES, min_size=1, max_size=4, unique=True))
def test_classes_are_called_what_their_folders_are_called(names: list[str]):
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            Path(folder, name).mkdir()
        config = starter(folder)
        assert sorted(config.classes) == sorted(names)
        assert planned(config) == 50 * len(names)


def test_a_thousand_classes_are_no_trouble():
    assert len(starter(dataset({f"class {number}": 0 for number in range(1000)})).classes) == 1000


# The models


def test_the_models_are_those_of_the_photograph_config(project: Path):
    config = starter(dataset({"cat": 1}))
    pizza = load_config(project / "configs/pizza.yaml")
    for setting in ("model", "revision", "variant", "width", "height", "steps", "guidance"):
        assert getattr(config.generation, setting) == getattr(pizza.generation, setting)
    for setting in ("model", "revision", "threshold"):
        assert getattr(config.verification, setting) == getattr(pizza.verification, setting)


# Facets


def test_without_a_metadata_table_a_facet_is_there_as_a_comment_to_take_in():
    text = starter_config(dataset({"cat": 2}))
    assert "An example of an axis besides the class" in text
    Path("job.yaml").write_text(text)
    assert load_config("job.yaml").facets == {}
    start = text.index("# facets:")
    section = text[start : text.index("\n\n", start)]
    Path("job.yaml").write_text(text.replace(section, section.replace("# ", "", 1).replace("\n# ", "\n")))
    facet = load_config("job.yaml").facets["lighting"]
    assert (facet.classes, len(facet.values)) == ("all", 4)
    assert all(len(value.prompts) == 2 for value in facet.values.values())


def test_facets_are_those_of_the_metadata_table():
    rows = columns("cat", weather=["rainy", "sunny"] * 3) | columns("dog", weather=["sunny", "sunny"])
    config = starter(dataset({"cat": 6, "dog": 2, "owl": 0}, rows))
    assert list(config.facets) == ["weather"]
    assert config.facets["weather"].classes == "all"
    assert {name: value.prompts for name, value in config.facets["weather"].values.items()} == {
        "rainy": ("rainy weather",),
        "sunny": ("sunny weather",),
    }


def test_a_facet_of_some_classes_applies_to_those():
    rows = columns("burnt", burn_level=["light_burn", "heavy_burn"] * 3) | columns("raw", burn_level=[""] * 2)
    facet = starter(dataset({"burnt": 6, "raw": 2}, rows)).facets["burn_level"]
    assert facet.classes == ("burnt",)
    assert facet.values["light_burn"].prompts == ("light burn",)


@pytest.mark.parametrize(
    ("column", "values", "reason"),
    [
        ("Status", ["train", "test"], "the manifest has a column of this name"),
        ("x" * 101, ["a", "b"], "cannot be named in a config"),
        ("angle", ["a/b", "c"], "cannot be named in a config"),
        ("camera", ["a", "a"], "it has a single value"),
        ("WEATHER", ["a", "b"], "another column differs from it only in case"),
        ("label", ["", ""], "each class has only one value of it"),
    ],
)
def test_a_column_that_makes_no_facet_is_left_out_with_the_reason(
    column: str, values: Sequence[str], reason: str
):
    cats, dogs = (
        columns(name, weather=["rainy", "sunny"] * 3, **{column: [*values] * 3}) for name in ("cat", "dog")
    )
    rows = {**cats, **dogs}
    if column == "label":
        rows = {name: {**row, column: name.partition("/")[0]} for name, row in rows.items()}
    at = dataset({"cat": 6, "dog": 6}, rows)
    assert list(starter(at).facets) == ["weather"]
    comments = " ".join(line.strip(" #") for line in starter_config(at).splitlines())
    assert f"{column}: " in comments
    assert reason in comments


@pytest.mark.parametrize("told", [starter_config, lambda at: " ".join(audit(Path(at)).remarks)])
def test_columns_whose_values_hardly_repeat_are_named_in_one_line(told):
    captions, ids = [f"cat {number}" for number in range(6)], [str(number) for number in range(6)]
    rows = columns("cat", weather=["rainy", "sunny"] * 3, caption=captions, identity=ids, split=["train"] * 6)
    text = told(dataset({"cat": 6}, rows))
    [line] = [line for line in text.splitlines() if "hardly repeat" in line]
    assert "caption, identity" in line
    assert "split" not in line.partition("hardly repeat")[2]


def test_a_target_counts_training_images_only():
    """As `target` does, or `init` would ask for images that nobody lacks."""
    cats = columns("cat", split=["train", "train", "val", "test", "test"])
    at = dataset({"cat": 5, "dog": 3}, cats)
    assert starter(at).target.per_class == 3
    assert "cat: # 5 images, 3 of them for validation or test" in starter_config(at)


def test_facets_that_would_make_too_many_cells_are_left_out():
    values = [str(number % 8) for number in range(32)]
    rows = columns("cat", first=values, second=values, third=values[::-1])
    at = dataset({"cat": 32}, rows)
    assert list(starter(at).facets) == ["first"]
    assert MAX_CELLS_PER_CLASS < 8 * 8
    assert "second: with it a class would have 64 cells" in starter_config(at)


# The hold-out


@pytest.mark.parametrize("name", ["holdout", "val", "test"])
def test_a_sibling_folder_with_the_same_classes_is_the_hold_out(name: str):
    dataset({"cat": 2, "dog": 1}, at=f"data/{name}")
    assert starter(dataset({"cat": 1, "dog": 1}, at="data/train")).dataset.holdout == f"data/{name}"


def test_the_hold_out_is_found_from_within_the_dataset(monkeypatch: pytest.MonkeyPatch):
    dataset({"cat": 1}, at="data/val")
    monkeypatch.chdir(dataset({"cat": 1}, at="data/train"))
    config = starter(".")
    assert config.dataset.holdout == "../val"
    assert audit_holdout(config) is not None


@pytest.mark.parametrize("other", [{}, {"car": 3, "bus": 2}])
def test_another_dataset_nearby_is_no_hold_out(other: Mapping[str, int]):
    Path("data/test").mkdir(parents=True)
    dataset(other, at="data/test")
    assert starter(dataset({"cat": 1, "dog": 1}, at="data/train")).dataset.holdout is None


def test_a_dataset_is_not_its_own_hold_out():
    assert starter(dataset({"cat": 1}, at="data/test")).dataset.holdout is None


def test_classes_of_the_hold_out_are_classes_too():
    dataset({"cat": 1, "dog": 1, "owl": 1}, at="data/holdout")
    config = starter(dataset({"cat": 2, "dog": 1}, at="data/train"))
    assert list(config.classes) == ["cat", "dog", "owl"]
    assert planned(config) == 3
    assert audit_holdout(config) is not None


def test_the_sample_dataset_comes_with_its_hold_out():
    config = starter("sample")
    assert (config.dataset.path, config.dataset.holdout) == ("sample", "sample")
    assert config.facets["burn_level"].classes == ("burnt",)
    assert len(config.classes) == 6
    assert planned(config) == 4 + 4 * 30


# What labelled images can prove


def checked_by_a_perfect_verifier(config: Config) -> Preflight:
    """The pre-flight of a verifier that is sure of every label there is."""
    audits = [audit_dataset(config), audit_holdout(config)]
    images = [image for found in audits if found for image in found.images]
    logs = {}
    for name, values in config.properties().items():
        labels = [image.class_name if name == CLASS_PROPERTY else image.facets.get(name) for image in images]
        shown = np.array([[label == value for value in values] for label in labels], bool)
        logs[name] = np.where(shown.reshape(len(images), len(values)), 0.0, -9.0)
    ids = tuple(str(number) for number in range(len(images)))
    return run_preflight(RealImages(ids, tuple(images), np.zeros((len(ids), 2), np.float16), logs), config)


WEATHER = ["rainy"] * 6 + ["sunny"] * 2


@pytest.mark.parametrize(
    ("counts", "rows", "unjudged"),
    [
        ({"cat": 8, "dog": 5}, {}, ()),
        ({"cat": 8, "dog": 4}, {}, ("class=dog",)),
        ({"cat": 8, "dog": 0}, {}, ("class=cat", "class=dog")),
        ({"cat": 8}, {}, ("class=cat",)),
        ({"cat": 8, "dog": 5}, columns("cat", weather=WEATHER), ("weather=sunny",)),
        ({"cat": 8, "dog": 5}, columns("cat", weather=["rainy", "sunny"] * 4), ("weather",)),
    ],
)
def test_exactly_what_labelled_images_cannot_prove_is_listed_as_unjudged(
    counts: Mapping[str, int], rows: Rows, unjudged: Sequence[str]
):
    config = starter(dataset(counts, rows))
    assert config.verification.unjudged == unjudged
    assert checked_by_a_perfect_verifier(config).blocking == ()
    for name in unjudged:
        fewer = {"unjudged": tuple(other for other in unjudged if other != name)}
        verification = config.verification.model_copy(update=fewer)
        without = config.model_copy(update={"verification": verification})
        assert checked_by_a_perfect_verifier(without).blocking != ()


def test_images_of_the_hold_out_are_labelled_ones_too():
    dataset({"cat": 3, "dog": 5}, at="data/holdout")
    config = starter(dataset({"cat": 2, "dog": 0}, at="data/train"))
    assert config.verification.unjudged == ()
    assert checked_by_a_perfect_verifier(config).blocking == ()


def test_what_unjudged_means_is_said_only_where_there_is_something_unjudged():
    meaning = "A run stops unless they are listed here"
    rows = columns("cat", weather=["rainy", "sunny"] * 5)
    assert meaning in starter_config(dataset({"cat": 1, "dog": 1}, at="one"))
    assert "unjudged" not in starter_config(dataset({"cat": 10, "dog": 5}, rows, at="two"))


# balancer init


def test_init_writes_a_config_that_plans():
    dataset({"cat": 3, "dog": 1})
    result = invoke("init", "data", "--out", "job.yaml")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        "job.yaml: written; edit its prompts, then `balancer plan job.yaml` shows the plan\n"
    )
    # Simulated actors need no verifier, which would be looked for on the hub.
    plan = invoke("plan", "job.yaml", "--set", "actors.kind=simulated")
    assert (plan.exit_code, plan.stdout.splitlines()[0]) == (
        0,
        "2 images to generate in 1 cell of 1 class",
    )


def test_without_out_init_prints_the_config():
    dataset({"cat": 3})
    assert invoke("init", "data").stdout == starter_config("data")


def colours(per_class: int) -> str:
    """Two classes whose names the embedded verifier does not know, one red, one green."""
    random = np.random.default_rng(0)
    for name, colour in (("wug", (200, 30, 30)), ("blicket", (30, 200, 30))):
        Path("data", name).mkdir(parents=True)
        for number in range(per_class):
            noise = random.integers(-30, 30, (32, 32, 3)) + colour
            Image.fromarray(noise.astype(np.uint8)).save(Path("data", name, f"{number}.png"))
    return "data"


def test_init_says_what_labelled_images_tell_that_words_do_not():
    result = invoke("init", colours(12), "--out", "job.yaml")
    assert result.exit_code == 0
    line = "labelled images tell what words alone do not, to embedded: class (log loss "
    assert line in result.stderr
    assert result.stderr.endswith(": verification.heads is auto\n")
    comments = " ".join(line.strip(" #") for line in Path("job.yaml").read_text().splitlines())
    assert line in comments
    config = load_config("job.yaml")
    assert config.verification.heads == "auto"
    assert config.verification.model.startswith("hf-hub:")


def test_init_loads_no_verifier_for_a_few_images(monkeypatch):
    monkeypatch.setattr("actors.real_images.measure_here", lambda *_: pytest.fail("it was loaded"))
    result = invoke("init", colours(4), "--out", "job.yaml")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "heads" not in Path("job.yaml").read_text()


def test_init_writes_a_config_even_if_a_verifier_cannot_look(monkeypatch):
    def fail(*_):
        raise DatasetError("an image changed")

    monkeypatch.setattr("actors.real_images.measure_here", fail)
    result = invoke("init", colours(6), "--out", "job.yaml")
    assert (result.exit_code, result.stderr) == (
        0,
        "the verifier looks at 12 labelled images, to find out whether words are enough\n"
        "no head was tried: an image changed\n",
    )
    assert Path("job.yaml").exists()


def test_init_looks_at_a_few_images_of_many(monkeypatch):
    monkeypatch.setattr(init, "MOST_LOOKED_AT", 14)
    looked_at = []

    def measure(config, audit, *_):
        looked_at.extend(image.class_name for image in audit.images)
        raise DatasetError("that is enough")

    monkeypatch.setattr("actors.real_images.measure_here", measure)
    invoke("init", colours(10), "--out", "job.yaml")
    assert (looked_at.count("wug"), looked_at.count("blicket")) == (7, 7)


def test_init_leaves_a_file_that_exists_as_it_is():
    Path("job.yaml").write_text("mine")
    result = invoke("init", dataset({"cat": 1}), "--out", "job.yaml")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "error: job.yaml already exists\nhint: name another file, or move that one away\n"
    )
    assert Path("job.yaml").read_text() == "mine"


@pytest.mark.parametrize("at", ["nowhere", "empty"])
def test_init_of_what_is_no_dataset_writes_nothing(at: str):
    Path("empty").mkdir()
    result = invoke("init", at, "--out", "job.yaml")
    assert (result.exit_code, result.stderr.startswith(f"error: {at}: ")) == (2, True)
    assert not Path("job.yaml").exists()
