from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from balancer.cli import main
from balancer.config.load import load_config
from balancer.config.schema import Config
from balancer.errors import ConfigError
from balancer.text.names import composed

BLOCK = "dataset_balancing_config"
SAMPLE = "dataset.path=sample"

SMALL: dict[str, Any] = {
    "target_distribution": {"a": {"target": 5, "current": 3}, "b": {"target": 5, "current": 0}},
    "class_specific_prompts": {"a": {"base_prompts": ["an a"]}, "b": {"base_prompts": ["a b"]}},
}

TRICKY_NAMES = st.sampled_from(
    [
        "yes",
        "no",
        "null",
        "~",
        "12",
        "1e5",
        "- a",
        "-",
        "a: b",
        "a #b",
        "#a",
        '"a"',
        "'a'",
        "{a}",
        "*a",
        "ü",
        "日本",
    ]
)


@pytest.fixture(scope="module")
def reference(project: Path) -> Path:
    return project / "tests/data/earlier_config.json"


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Config]:
    """Write a block as a file of the earlier tool, and load it."""

    def load(block: dict[str, Any], *overrides: str) -> Config:
        return load_config(written(tmp_path, block), [SAMPLE, *overrides])

    return load


@pytest.fixture
def problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """What is wrong with a block, one setting of which stands on each line of `old.json`."""
    monkeypatch.chdir(tmp_path)

    def problems(block: dict[str, Any], *overrides: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            load_config(written(Path(), block), overrides)
        return list(caught.value.problems)

    return problems


def written(folder: Path, block: object) -> Path:
    path = folder / "old.json"
    path.write_text(json.dumps({BLOCK: block}, indent=1), encoding="utf-8")
    return path


def small(**sections: Any) -> dict[str, Any]:
    return copy.deepcopy(SMALL) | sections


def invoke(*args: str | Path) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def plan_of(config: Path, *overrides: str) -> dict[str, Any]:
    # Simulated actors need no verifier, which would be looked for on the hub.
    options = [part for override in ("actors.kind=simulated", *overrides) for part in ("--set", override)]
    result = invoke("plan", config, "--json", "--no-preflight", *options)
    assert result.exit_code == 0, result.stderr
    plan: dict[str, Any] = json.loads(result.stdout)
    return plan


def unused(result: Result) -> dict[str, str]:
    """Field -> reason, as `convert` lists them."""
    lines = [line for line in result.stderr.splitlines() if line.startswith("not used: ")]
    fields = [line.removeprefix("not used: ").split(": ", 2) for line in lines]
    return {field: reason for _, field, reason in fields}


# The reference case


def test_the_reference_case_plans_244_images_in_32_cells(reference: Path):
    plan = plan_of(reference, SAMPLE)
    lighting, burn_level = Counter[str](), Counter[str]()
    for cell in plan["cells"]:
        lighting[cell["lighting"]] += cell["quota"]
        burn_level[cell["burn_level"]] += cell["quota"]
    assert (plan["total"], len(plan["cells"])) == (244, 32)
    assert set(lighting.values()) == {61}
    assert [burn_level[f"{level}_burnt"] for level in ("slightly", "moderately", "severely")] == [10, 8, 6]


def test_the_reference_case_is_that_of_our_own_config(reference: Path, project: Path):
    own = load_config(project / "configs/pizza.yaml")
    config = load_config(reference, [SAMPLE])
    for section in ("target", "review", "criteria", "attempts"):
        assert getattr(config, section) == getattr(own, section)
    for setting in ("model", "revision", "threshold"):
        assert getattr(config.verification, setting) == getattr(own.verification, setting)
    left_to_us = {"batch_size": 1, "negative_prompt": ""}
    assert config.generation == own.generation.model_copy(update=left_to_us)
    assert config.facet_axes() == own.facet_axes()
    assert list(config.classes) == list(own.classes)


def test_what_is_converted_is_the_same_config_with_the_same_plan(reference: Path, tmp_path: Path):
    out = tmp_path / "new.yaml"
    result = invoke("convert", reference, "--out", out, "--set", SAMPLE)
    assert result.exit_code == 0, result.stderr
    assert load_config(out) == load_config(reference, [SAMPLE])
    assert plan_of(out) == plan_of(reference, SAMPLE)


def test_without_out_the_yaml_goes_to_standard_output(reference: Path, tmp_path: Path):
    (tmp_path / "new.yaml").write_text(invoke("convert", reference, "--set", SAMPLE).stdout, encoding="utf-8")
    assert load_config(tmp_path / "new.yaml") == load_config(reference, [SAMPLE])


def test_every_field_without_a_use_is_listed_with_its_reason(reference: Path):
    assert list(unused(invoke("convert", reference))) == [
        "version",
        "target_distribution.*.current_count",
        "target_distribution.*.generate_count",
        "target_distribution.*.priority",
        "generation_parameters.model_type",
        "generation_parameters.verify_target_properties",
        "generation_parameters.save_metadata",
        "generation_parameters.output_dir",
        "generation_parameters.enable_cpu_offload",
        "class_specific_prompts.progression.transitions",
        "generation_sequence",
        "output_structure",
        "quality_control.verification_enabled",
        "quality_control.fallback_strategies.alternative_prompts",
        "quality_control.fallback_strategies.traditional_augmentation",
        "validation_metrics.primary_success.class_balance_ratio",
        "validation_metrics.secondary_success",
        "estimated_resources",
    ]


def test_the_yaml_lists_them_too(reference: Path):
    result = invoke("convert", reference)
    comments = [line.removeprefix("#").strip() for line in result.stdout.splitlines() if line.startswith("#")]
    listed = " ".join(comments)
    for field, reason in unused(result).items():
        assert f"{field}: {reason}" in listed


def test_counts_of_the_file_are_not_trusted(load: Callable[..., Config], tmp_path: Path):
    (tmp_path / "data/a").mkdir(parents=True)
    path = written(tmp_path, small())
    assert plan_of(path, f"dataset.path={tmp_path / 'data'}")["total"] == 10
    assert (
        "count the images of the dataset" in unused(invoke("convert", path))["target_distribution.*.current"]
    )


def test_plan_and_run_say_that_fields_are_not_used(reference: Path, caplog: pytest.LogCaptureFixture):
    load_config(reference, [SAMPLE])
    assert [record.getMessage() for record in caplog.records] == [
        f"{reference}: 18 fields of the legacy layout are not used; `balancer convert` lists them"
    ]


# Where things may stand


@pytest.mark.parametrize(
    ("sections", "setting", "value"),
    [
        ({"generation_parameters": {"model": "x/y"}}, "generation.model", "x/y"),
        ({"generation_parameters": {"image_size": 256}}, "generation.width", 256),
        ({"generation_parameters": {"resolution": [256, 512]}}, "generation.height", 512),
        ({"generation_parameters": {"resolution": "256x512"}}, "generation.height", 512),
        ({"generation_parameters": {"image_size": {"width": 256, "height": 64}}}, "generation.height", 64),
        ({"generation_parameters": {"width": 256, "height": 64, "size": 512}}, "generation.height", 64),
        ({"generation_parameters": {"seed": 7}}, "seed", 7),
        ({"seed": 7}, "seed", 7),
        ({"generation_parameters": {"negative_prompts": ["x", "y"]}}, "generation.negative_prompt", "x, y"),
        ({"generation_parameters": {"max_retries": 4}}, "attempts.max", 4),
        ({"quality_control": {"max_attempts": 4}}, "attempts.max", 4),
        ({"quality_control": {"clip_threshold": 0.7}}, "verification.threshold", 0.7),
        ({"quality_control": {"fallback_threshold": 0.4}}, "attempts.fallback.threshold", 0.4),
        ({"quality_control": {"manual_review_fraction": 0.2}}, "review.fraction", 0.2),
        ({"quality_control": {"manual_review_percentage": 20}}, "review.fraction", 0.2),
        ({"success_criteria": {"success_rate": 0.9}}, "criteria.success_rate", 0.9),
        ({"success_criteria": {"min_images_per_class": 4}}, "criteria.class_fill", 0.8),
        ({"target_distribution": {"a": 5, "b": 5}}, "target.per_class", 5),
        ({"target_distribution": {"a": {"current_count": 2, "generate_count": 3}}}, "target.per_class", 5),
        ({"target_distribution": None, "images_per_class": 5}, "target.per_class", 5),
        ({"class_specific_prompts": {"a": ["x", "y"], "b": "z"}}, "classes.a.prompts", ("x", "y")),
        ({"class_specific_prompts": {"a": {"prompt": "x"}}}, "classes.a.prompts", ("x",)),
        ({"class_specific_prompts": {"b": {"prompt": "x"}}}, "classes.a.prompts", ("a photo of an a",)),
        ({"class_specific_prompts": {"a": {"negative_prompt": "x"}}}, "classes.a.negative_prompt", "x"),
        ({"dataset_path": "data/x"}, "dataset.path", "data/x"),
    ],
)  # fmt: skip
def test_a_setting_is_found_under_any_of_its_names(
    sections: dict[str, Any], setting: str, value: object, tmp_path: Path
):
    overrides = [] if setting == "dataset.path" else [SAMPLE]
    found: Any = load_config(written(tmp_path, small(**sections)), overrides)
    for key in setting.split("."):
        found = found[key] if isinstance(found, dict) else getattr(found, key)
    assert found == value


def test_of_two_thresholds_that_differ_one_counts_and_the_other_is_listed(tmp_path: Path):
    quality = {"verification_threshold": 0.6}
    path = written(tmp_path, small(generation_parameters={"quality_threshold": 0.9}, quality_control=quality))
    assert load_config(path, [SAMPLE]).verification.threshold == 0.6
    assert unused(invoke("convert", path))["generation_parameters.quality_threshold"] == (
        "quality_control.verification_threshold is used instead"
    )


def test_a_file_without_models_gets_those_for_photographs_pinned(load: Callable[..., Config], project: Path):
    pizza = load_config(project / "configs/pizza.yaml")
    config = load(small())
    for section in ("generation", "verification"):
        found, wanted = getattr(config, section), getattr(pizza, section)
        assert (found.model, found.revision) == (wanted.model, wanted.revision)


def test_the_embedded_models_go_together(load: Callable[..., Config]):
    assert load(small(model="embedded")).verification.model == "embedded"


# Facets


@pytest.mark.parametrize(
    "given",
    [
        {"dim": 0.4, "bright": 0.6},
        {"dim": 40, "bright": 60},
        {"dim": {"share": 0.4}, "bright": {"share": 0.6}},
        {"dim": 0.4, "bright": 0.6, "none": 0},
    ],
)
def test_shares_are_parts_or_percent(given: dict[str, Any], load: Callable[..., Config]):
    values = load(small(lighting_distribution=given)).facets["lighting"].values
    assert {name: value.share for name, value in values.items()} == {"dim": 0.4, "bright": 0.6}


@pytest.mark.parametrize("share", [True, float("nan"), float("inf")])
def test_what_is_no_number_beside_percentages_is_refused(share: float, load: Callable[..., Config]):
    with pytest.raises(ConfigError):
        load(small(lighting_distribution={"dim": share, "bright": 60}))


def test_quantities_with_decimals_stay_exact(load: Callable[..., Config]):
    given = {"x": 33.3, "y": 33.3, "z": 33.4}
    values = load(small(lighting_distribution=given)).facets["lighting"].values
    assert [value.share for value in values.values()] == [0.333, 0.333, 0.334]


def test_a_list_of_values_has_even_shares(load: Callable[..., Config]):
    axis = load(small(lighting_distribution=["dim", "bright"])).facet_axes()[0]
    assert (axis.values, axis.shares[0]) == (("dim", "bright"), axis.shares[1])


@pytest.mark.parametrize(
    ("sections", "prompts"),
    [
        ({}, ("dim lighting",)),
        ({"lighting_prompts": {"dim": "candles"}}, ("candles",)),
        ({"lighting_distribution": {"dim": {"share": 1, "prompts": ["candles"]}}}, ("candles",)),
        ({"class_specific_prompts": {"a": {"lighting_prompts": {"dim": ["x", "y"]}}}}, ("x", "y")),
        (
            {"class_specific_prompts": {n: {"lighting_prompts": {"dim": ["x", n]}} for n in "ab"}},
            ("x", "a", "b"),
        ),
    ],
)
def test_a_facet_value_has_the_prompts_of_the_file_or_its_name(
    sections: dict[str, Any], prompts: Sequence[str], load: Callable[..., Config]
):
    config = load(small(**{"lighting_distribution": {"dim": 1}, **sections}))
    assert config.facets["lighting"].values["dim"].prompts == prompts


def test_burn_levels_are_of_the_burnt_class_and_of_classes_that_have_them(load: Callable[..., Config]):
    block = small(burn_level_distribution={"slight": 1})
    block["target_distribution"] |= {"burnt": {"target": 5}}
    block["class_specific_prompts"]["b"]["burn_specific"] = {"slight": ["a bit"]}
    facet = load(block).facets["burn_level"]
    assert facet.classes == ("b", "burnt")
    assert facet.values["slight"].prompts == ("a bit",)


def test_burn_levels_without_a_class_for_them_are_listed(tmp_path: Path):
    path = written(tmp_path, small(burn_level_distribution={"slight": 1}))
    assert not load_config(path, [SAMPLE]).facets
    assert unused(invoke("convert", path))["burn_level_distribution"] == "no class is called burnt"


# What is wrong


def test_a_file_that_does_not_say_where_the_images_are_needs_an_override(problems: Callable[..., list[str]]):
    assert problems(small()) == [
        "old.json:2: dataset.path: missing: the file does not say where the images are; "
        "give --set dataset.path=FOLDER"
    ]


def test_targets_that_differ_become_targets_of_single_classes(load: Callable[..., Config]):
    config = load(small(target_distribution={"a": {"target_count": 5}, "b": {"target_count": 6}}))
    assert config.target.classes == {"a": 5, "b": 6}
    assert config.target.per_class is None


def test_a_target_of_all_classes_leaves_single_ones_theirs(load: Callable[..., Config]):
    distribution = {"a": {"target": 5}, "b": {"target": 6}, "c": {"current": 3}}
    target = load(small(target_distribution=distribution, images_per_class=5)).target
    assert (target.per_class, target.classes) == (5, {"b": 6})


def test_one_target_can_replace_targets_that_differ(tmp_path: Path):
    path = written(tmp_path, small(target_distribution={"a": 5, "b": 6}))
    target = load_config(path, [SAMPLE, "target.classes=null", "target.per_class=7"]).target
    assert (target.per_class, target.classes) == (7, {})


def test_a_class_without_a_target_beside_others_is_reported(
    problems: Callable[..., list[str]],
):
    assert problems(small(target_distribution={"a": 5, "b": {"priority": 1}}), SAMPLE) == [
        "old.json:4: target: b has no target; name it in target.classes, or give one of per_class,"
        " ratio_to_largest, total, rule for all other classes"
    ]


def test_a_least_number_of_images_is_no_fraction_of_targets_that_differ(tmp_path: Path):
    block = small(target_distribution={"a": 5, "b": 6}, success_criteria={"min_images_per_class": 4})
    why = "it becomes a fraction of the target, and targets differ by class"
    assert why in unused(invoke("convert", written(tmp_path, block))).values()


@pytest.mark.parametrize(
    ("sections", "culprit", "problem"),
    [
        (
            {"generation_parameters": {"num_inference_steps": 5000}},
            "num_inference_steps",
            "generation.steps: should be at most 1,000, not 5000",
        ),
        (
            {"generation_parameters": {"image_size": "large"}},
            "image_size",
            'generation.width: should be a whole number, not "large"',
        ),
        (
            {"lighting_distribution": {"dim": 0.5, "bright": 0.4}},
            "lighting_distribution",
            "facets.lighting: shares sum to 0.9, not 1",
        ),
        (
            {"lighting_distribution": {"a/b": 1}},
            "a/b",
            "facets.lighting.values.a/b: should be a name of at most 100 characters without `/`",
        ),
        (
            {"class_specific_prompts": {"a": {"base_prompts": ["x", 4444]}}},
            "4444",
            "classes.a.prompts.1: should be text",
        ),
        (
            {"lighting_distribution": 3},
            "lighting_distribution",
            "dataset_balancing_config.lighting_distribution: should be a mapping of names to settings",
        ),
    ],
)
def test_a_wrong_value_is_reported_on_the_line_where_it_stands(
    sections: dict[str, Any], culprit: str, problem: str, problems: Callable[..., list[str]]
):
    found = problems(small(**sections), SAMPLE)[0]
    lines = Path("old.json").read_text().splitlines()
    (number,) = [number for number, line in enumerate(lines, start=1) if culprit in line]
    assert found.startswith(f"old.json:{number}: {problem}")


@pytest.mark.parametrize("block", [None, 3, [], "x"])
def test_a_block_that_is_no_mapping(block: object, problems: Callable[..., list[str]]):
    found = problems(block)
    assert found == [f"old.json:2: {BLOCK}: should be a mapping of settings"]


def test_an_empty_block_lacks_classes_target_and_dataset(problems: Callable[..., list[str]]):
    assert {line.split(": ")[1] for line in problems({})} == {"classes", "target", "dataset.path"}


def test_overrides_are_in_our_layout(load: Callable[..., Config]):
    config = load(small(), "generation.steps=7", "classes.a.prompts=[x]")
    assert (config.generation.steps, config.classes["a"].prompts) == (7, ("x",))


# balancer convert


def test_a_dataset_the_file_does_not_name_is_left_open_and_refused_until_filled_in(
    reference: Path, tmp_path: Path
):
    out = tmp_path / "new.yaml"
    result = invoke("convert", reference, "--out", out)
    assert (result.exit_code, "warning: dataset.path is empty" in result.stderr) == (0, True)
    with pytest.raises(ConfigError, match=r"new\.yaml:\d+: dataset\.path: should be text"):
        load_config(out)
    assert load_config(out, [SAMPLE]) == load_config(reference, [SAMPLE])


def test_what_was_chosen_is_told_unless_it_was_overridden(tmp_path: Path):
    path = written(tmp_path, small(class_specific_prompts={}))
    result = invoke("convert", path, "--set", "classes.a.prompts=[an a]")
    chosen = [line for line in result.stderr.splitlines() if line.startswith("chosen here: ")]
    assert not any(": classes.a.prompts: " in line for line in chosen)
    assert any(": classes.b.prompts: " in line for line in chosen)
    assert "# Chosen here: the file has no prompts for this class" in result.stdout


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["{folder}/none.json"], "config {folder}/none.json does not exist"),
        (["{own}"], "{own}: not a legacy config: it has no `dataset_balancing_config`"),
        (["{old}", "--out", "{own}"], "{own} already exists"),
        (["{old}", "--set", "generation.stepz=3"], "generation.stepz"),
    ],
)
def test_what_cannot_be_converted_is_an_error_line(args: Sequence[str], line: str, tmp_path: Path):
    places = {"folder": tmp_path, "own": tmp_path / "own.yaml", "old": written(tmp_path, small())}
    places["own"].write_text("target: {per_class: 3}\n")
    result = invoke("convert", *(arg.format(**places) for arg in args))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert line.format(**places) in result.stderr
    assert places["own"].read_text() == "target: {per_class: 3}\n"


NAMES = TRICKY_NAMES | st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/"), min_size=1
).map(lambda name: composed(name[:100]).strip()).filter(bool)


@given(
    st.lists(NAMES, min_size=1, max_size=4, unique=True), st.lists(NAMES, min_size=1, max_size=3, unique=True)
)
def test_names_are_converted_to_the_same_names(
    tmp_path_factory: pytest.TempPathFactory, classes: list[str], values: list[str]
):
    folder = tmp_path_factory.getbasetemp()
    block = {
        "target_distribution": dict.fromkeys(classes, 5),
        "class_specific_prompts": {name: {"base_prompts": [f"a {name}"]} for name in classes},
        "lighting_distribution": values,
    }
    result = invoke("convert", written(folder, block), "--set", SAMPLE)
    assert result.exit_code == 0, result.stderr
    (folder / "new.yaml").write_text(result.stdout, encoding="utf-8", newline="")
    config = load_config(folder / "new.yaml")
    assert list(config.classes) == classes
    assert list(config.facets["lighting"].values) == values
    assert config == load_config(folder / "old.json", [SAMPLE])


KEYS = st.text(max_size=5).map(lambda key: composed(key).strip())
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
SECTIONS = st.sampled_from(
    [(), ("generation_parameters",), ("quality_control",), ("target_distribution", "a")]
)


@given(SECTIONS, st.text(max_size=5).map(lambda name: f"x_{name}"), JUNK)
def test_an_unknown_field_is_listed_and_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, section: Sequence[str], name: str, value: object
):
    folder = tmp_path_factory.getbasetemp()
    plain = load_config(written(folder, small()), [SAMPLE])
    block = small()
    holder = block
    for key in section:
        holder = holder.setdefault(key, {})
    holder[name] = value
    path = written(folder, block)
    assert load_config(path, [SAMPLE]) == plain
    listed = invoke("convert", path, "--set", SAMPLE).stderr
    assert ("there is no such setting" in listed) == (value is not None)
