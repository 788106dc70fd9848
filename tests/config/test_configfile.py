from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.config.explain import PATTERNS
from balancer.config.load import MAX_FILE_BYTES, load_config
from balancer.config.schema import Config
from balancer.config.yaml_reading import MAX_CHARACTERS, MAX_DEPTH, MAX_NODES, read_document
from balancer.dataset.audit import dataset_folder, holdout_folder
from balancer.errors import ConfigError, DatasetError
from balancer.verification.calibration import calibration_file

GOOD = """\
target: {per_class: 50}
classes:
  basic: {prompts: [a pizza]}
"""


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(text: str, overrides: Sequence[str] = (), *, name: str = "job.yaml") -> Config:
    Path(name).write_text(text, encoding="utf-8")
    return load_config(name, overrides)


def problems(text: str, overrides: Sequence[str] = (), *, name: str = "job.yaml") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(text, overrides, name=name)
    return list(caught.value.problems)


# What is read


def test_yaml_is_read():
    assert load(GOOD).classes["basic"].prompts == ("a pizza",)


def test_json_is_read_with_tabs_and_escapes():
    text = r'{#"target": {"per_class": 50},#"classes": {"a": {"prompts": ["\ud83c\udf55 \/ \u00e9"]}}}'
    assert load(text.replace("#", "\n\t"), name="job.json").classes["a"].prompts == ("\U0001f355 / é",)


def test_what_a_config_is_written_as_reads_back_the_same():
    config = load(GOOD)
    assert load(json.dumps(config.model_dump(mode="json")), name="job.json") == config


@pytest.mark.parametrize("name", ["no", "on", "007", "1e5", "null", "~", "2026-01-01"])
def test_a_class_is_called_what_is_written(name: str):
    assert list(load(GOOD.replace("basic", name)).classes) == [name]


def test_numbers_are_those_of_yaml_1_2():
    config = load(GOOD, ["verification.threshold=1e-1", "generation.steps=010"])
    assert (config.verification.threshold, config.generation.steps) == (0.1, 10)


def test_anchors_are_written_out():
    text = GOOD + "  burnt: {prompts: [x], variations: &v [y, z]}\n  mixed: {prompts: [x], variations: *v}\n"
    assert load(text).classes["mixed"].variations == ("y", "z")


def test_a_byte_order_mark_is_passed_over():
    assert load("\ufeff" + GOOD).target.per_class == 50


# A config that extends another


def extended(above: str, below: str = GOOD) -> Config:
    Path("base.yaml").write_text(below)
    return load("extends: base.yaml\n" + above)


def test_a_config_that_extends_another_says_only_what_differs():
    config = extended("generation: {steps: 4}\nname: fast\n")
    assert (config.target.per_class, config.generation.steps, config.name) == (50, 4, "fast")
    assert list(config.classes) == ["basic"]


def test_sections_are_joined_and_lists_are_replaced():
    below = GOOD + "  burnt: {prompts: [a, b], labels: [c]}\n"
    config = extended("classes: {burnt: {prompts: [z]}, mixed: {prompts: [y]}}\n", below)
    assert list(config.classes) == ["basic", "burnt", "mixed"]
    assert (config.classes["burnt"].prompts, config.classes["burnt"].labels) == (("z",), ("c",))


def test_a_config_is_found_beside_the_one_that_extends_it():
    Path("folder").mkdir()
    Path("folder/base.yaml").write_text(GOOD)
    Path("folder/job.yaml").write_text("extends: base.yaml\nseed: 7\n")
    assert load_config("folder/job.yaml").seed == 7


def test_problems_are_told_where_they_stand():
    Path("base.yaml").write_text(GOOD + "generation: {steps: 0}\nreview: {fraction: 2}\n")
    found = problems("extends: base.yaml\ngeneration: {guidance: -1}\nreview: {fraction: 0.5}\n")
    assert found == [
        "base.yaml:4: generation.steps: should be at least 1, not 0",
        "job.yaml:2: generation.guidance: should be at least 0, not -1",
    ]


def test_a_base_that_is_not_there():
    assert problems("extends: nothing.yaml\n") == ["config nothing.yaml does not exist"]


def test_a_base_has_a_name():
    assert problems("extends: [a, b]\n") == [
        'job.yaml:1: extends: should be the name of a config file, not ["a", "b"]'
    ]


def test_configs_that_extend_each_other_are_refused():
    Path("base.yaml").write_text("extends: job.yaml\n")
    [problem] = problems("extends: base.yaml\n")
    assert problem.endswith("extends: more than 5 files, or a cycle")


# Where the paths of a config lead


def folders(*names: str) -> None:
    for name in names:
        Path(name).mkdir(parents=True)


@pytest.mark.parametrize(
    ("there", "found"),
    [
        (["jobs/data", "data"], "jobs/data"),
        (["jobs/data"], "jobs/data"),
        (["data"], "data"),
    ],
)
@pytest.mark.parametrize("setting", ["path", "holdout"])
def test_a_dataset_is_looked_for_beside_its_config_then_in_the_working_folder(
    there: Sequence[str], found: str, setting: str
):
    folders("jobs", *there)
    config = load(f"{GOOD}dataset: {{{setting}: data}}\n", name="jobs/job.yaml")
    folder = dataset_folder(config) if setting == "path" else holdout_folder(config)
    assert folder == Path(found)
    assert getattr(config.dataset, setting) == "data"


def test_a_dataset_that_an_extended_config_names_is_looked_for_beside_that_one():
    folders("base/data", "jobs/data")
    Path("base/base.yaml").write_text(f"{GOOD}dataset: {{path: data}}\n")
    config = load("extends: ../base/base.yaml\n", name="jobs/job.yaml")
    assert dataset_folder(config).samefile("base/data")


def test_a_dataset_from_the_command_line_is_looked_for_in_the_working_folder():
    folders("jobs/data", "data")
    assert dataset_folder(load(GOOD, ["dataset.path=data"], name="jobs/job.yaml")) == Path("data")


def test_a_dataset_that_is_nowhere_is_told_with_the_places():
    folders("jobs")
    here = Path.cwd()
    with pytest.raises(DatasetError) as caught:
        dataset_folder(load(f"{GOOD}dataset: {{path: data}}\n", name="jobs/job.yaml"))
    assert caught.value.message == (
        "dataset.path: no such dataset folder: data; looked for "
        f"{here}/jobs/data (beside the config), {here}/data"
    )


def test_a_calibration_is_looked_for_in_the_same_places():
    folders("jobs")
    config = load(f"{GOOD}verification: {{calibration: c.json}}\n", name="jobs/job.yaml")
    assert calibration_file(config) == "c.json"
    Path("jobs/c.json").touch()
    assert calibration_file(config) == "jobs/c.json"


def test_from_where_a_config_is_read_does_not_change_what_it_says():
    folders("jobs")
    inside, outside = (load(GOOD, name=name) for name in ("jobs/job.yaml", "job.yaml"))
    assert inside == outside
    assert inside.fingerprint() == outside.fingerprint()


# What cannot be read at all


def test_a_config_that_is_not_there():
    with pytest.raises(ConfigError, match=r"^config job\.yaml does not exist$"):
        load_config("job.yaml")


def test_a_folder_is_no_config():
    with pytest.raises(ConfigError, match=r"^config \. is a folder, not a file$"):
        load_config(".")


@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("kind", ["pipe", "device", "name with a null"])
def test_a_config_that_is_no_regular_file_is_refused_and_not_waited_for(kind: str, extended: bool):
    os.mkfifo("pipe.yaml")
    name = {"pipe": "pipe.yaml", "device": "/dev/zero", "name with a null": "a\0b"}[kind]
    Path("job.yaml").write_text(f"extends: {json.dumps(name)}\n")
    with pytest.raises(ConfigError, match=r"^config .* is (not a regular file|no name)") as caught:
        load_config("job.yaml" if extended else name)
    assert "save the config to a file" in caught.value.hint


def test_a_config_that_is_a_link_to_a_file_is_read():
    Path("job.yaml").symlink_to("real.yaml")
    assert load(GOOD, name="real.yaml") == load_config("job.yaml")


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing but a comment\n"])
def test_an_empty_config(text: str):
    assert problems(text) == ["job.yaml is empty"]


def test_a_config_that_is_not_text():
    Path("job.yaml").write_bytes(b"\x89PNG\r\n\xff\xfe")
    with pytest.raises(ConfigError, match=r"^config job\.yaml is not UTF-8 text$"):
        load_config("job.yaml")


def test_a_config_that_is_too_large():
    assert problems("#" * (MAX_FILE_BYTES + 1)) == ["config job.yaml is larger than 1.0 MB"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: [1, 2\nc: 3\n", 3),
        ("a: b: c\n", 1),
        ("a: 1\n\tb: 2\n", 2),
        ("a: \x00\n", 1),
        ("--- 1\n--- 2\n", 2),
    ],
)
def test_what_is_not_yaml_says_where(text: str, line: int):
    (problem,) = problems(text)
    assert problem.startswith(f"job.yaml:{line}: not valid YAML or JSON: ")


@pytest.mark.parametrize(
    ("text", "given"), [("- a\n- b\n", "a list of 2"), ("hello\n", '"hello"'), ("3\n", "3"), ("~\n", "null")]
)
def test_a_config_that_is_not_a_mapping(text: str, given: str):
    (problem,) = problems(text)
    assert problem.startswith(f"job.yaml:1: should be a mapping of settings, not {given}")


TOO_MANY_NODES = f"job.yaml:1: more than {MAX_NODES} keys and values once aliases are expanded"


def test_aliases_that_multiply_are_refused_at_once():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert problems("\n".join(lines)) == [TOO_MANY_NODES]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f"[{'a,' * (MAX_NODES + 1)}]", TOO_MANY_NODES),
        (f"a: &m {{{'k,' * 10_000}}}\nb: [{'*m,' * 10_000}]", "more than 100 such problems, the first at"),
        (f"a: &m {{{'? [],' * 10_000}}}\nb: [{'*m,' * 10_000}]", "more than 100 such problems, the first at"),
        (f"a: &m {{{','.join(f'k{n}' for n in range(10_000))}}}\nb: [{'*m,' * 10_000}]", TOO_MANY_NODES),
        (f"a: &m {'x' * 300_000}\nb: [{'*m,' * 150_000}]", f"more than {MAX_CHARACTERS} characters"),
        (f"a: &m {'x' * 300_000}\nb: [{'{? *m : 1},' * 50_000}]", f"more than {MAX_CHARACTERS} characters"),
    ],
    ids=["plain", "repeated keys", "keys that are lists", "keys", "long text", "long key"],
)
def test_a_document_that_would_take_minutes_is_refused_in_seconds(text: str, problem: str):
    assert len(text) < MAX_FILE_BYTES
    began = time.process_time()
    (line,) = problems(text)
    assert problem in line
    assert time.process_time() - began < 60


def test_an_alias_of_itself_is_refused():
    assert problems("a: &a [*a]") == [f"job.yaml:1: nested deeper than {MAX_DEPTH} levels"]


def test_deep_nesting_is_refused():
    assert problems("[" * 1_000) == ["job.yaml:1: nested too deeply to read"]


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system", "!custom", "!!binary", "!!set"])
def test_no_tag_constructs_anything(tag: str):
    found = problems(GOOD + f"name: {tag} aGVsbG8=\n")
    assert [line.partition(" is not supported")[0] for line in found] == [
        f"job.yaml:4: name: the tag {tag.replace('!!', 'tag:yaml.org,2002:')}"
    ]


@given(st.text(max_size=200))
def test_no_text_at_all_makes_reading_fail_otherwise(text: str):
    with contextlib.suppress(ConfigError):
        document = read_document(text, lambda line: f"job.yaml:{line}")
        assert document is None or () in document.places


# What is wrong in it


def test_a_misspelt_key_is_one_problem_and_names_the_right_one():
    assert problems(GOOD.replace("per_class", "per_clas")) == [
        "job.yaml:1: target.per_clas: unknown key `per_clas`, did you mean `per_class`?"
    ]


def test_a_key_in_the_wrong_section_names_the_right_one():
    assert problems(GOOD + "steps: 20\n") == [
        "job.yaml:4: steps: unknown key `steps`, did you mean `generation.steps`?"
    ]


def test_a_key_like_no_other_lists_those_there_are():
    assert problems(GOOD + "review: {xyz: 1}\n") == [
        "job.yaml:4: review.xyz: unknown key `xyz`; the keys here are fraction, margin, max_error"
    ]


def test_a_misspelt_key_within_an_optional_section():
    assert problems(GOOD + "attempts: {fallback: {treshold: 0.4}}\n") == [
        "job.yaml:4: attempts.fallback.treshold: unknown key `treshold`, did you mean `threshold`?"
    ]


def test_a_missing_key_is_named_where_its_section_begins():
    assert problems(GOOD.replace("prompts:", "labels:")) == ["job.yaml:3: classes.basic.prompts: missing"]


def test_null_removes_the_target_of_a_class_that_a_base_gives(tmp_path: Path):
    Path("base.yaml").write_text(GOOD.replace("{per_class: 50}", "{per_class: 50, classes: {basic: 7}}"))
    assert load("extends: base.yaml\n").target.classes == {"basic": 7}
    assert load("extends: base.yaml\ntarget: {classes: {basic: null}}\n").target.classes == {}
    assert load("extends: base.yaml\ntarget: {classes: null}\n").target.classes == {}


def test_a_target_is_given_once():
    rule = "one of per_class, ratio_to_largest, total, rule must be given"
    assert problems(GOOD.replace("{per_class: 50}", "{}")) == [
        f"job.yaml:1: target: {rule}, and none of them is"
    ]
    assert problems(GOOD.replace("{per_class: 50}", "{per_class: 50, total: 9}")) == [
        f"job.yaml:1: target: {rule}, and per_class and total are given"
    ]


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("{per_class: 9, classes: {basik: 5}}", ".classes.basik: no class 'basik'; did you mean 'basic'?"),
        ("{per_class: 9, classes: {xyz: 5}}", ".classes.xyz: no class 'xyz'; the classes are basic, burnt"),
        (
            "{classes: {basic: 5}}",
            ": burnt has no target; name it in target.classes, or give one of per_class, ratio_to_largest,"
            " total, rule for all other classes",
        ),
        (
            "{per_class: 9, classes: {basic: kep}}",
            '.classes.basic: should be a whole number or `keep`, not "kep", did you mean `keep`?',
        ),
        ("{per_class: 9, classes: {basic: 0}}", ".classes.basic: should be more than 0 or `keep`, not 0"),
        (
            "{rule: sqr}",
            '.rule: should be `effective_number`, `sqrt` or `recommended`, not "sqr", did you mean `sqrt`?',
        ),
        ("{rule: effective_number}", ": rule: effective_number needs beta, such as 0.999"),
        ("{rule: sqrt, beta: 0.9}", ": beta has no effect without rule: effective_number"),
        (
            "{rule: recommended}",
            ": rule: recommended needs evaluation, the folder or bucket of an evaluated run",
        ),
        ("{per_class: 9, evaluation: x}", ": evaluation has no effect without rule: recommended"),
    ],
)
def test_a_faulty_target_is_explained(target: str, problem: str):
    text = GOOD.replace("{per_class: 50}", target) + "  burnt: {prompts: [a burnt one]}\n"
    assert problems(text) == [f"job.yaml:1: target{problem}"]


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("generation: {steps: many}", 'generation.steps: should be a whole number, not "many"'),
        ("generation: {steps: 2.5}", "generation.steps: should be a whole number, not 2.5"),
        ("generation: {steps: true}", "generation.steps: should be a whole number, not true"),
        ("generation: {steps: '20'}", 'generation.steps: should be a whole number, not "20"'),
        ("generation: {steps: 1001}", "generation.steps: should be at most 1,000, not 1001"),
        ("generation: {guidance: -1}", "generation.guidance: should be at least 0, not -1"),
        ("generation: {width: 100}", "generation.width: should be a multiple of 8, not 100"),
        ("verification: {threshold: 1.5}", "verification.threshold: should be at most 1, not 1.5"),
        ("verification: {threshold: [1]}", "verification.threshold: should be a number, not a list of 1"),
        ("budget: {max_hours: 0}", "budget.max_hours: should be more than 0, not 0"),
        ("budget: {max_hours: .inf}", "budget.max_hours: '.inf' is not a finite number of reasonable length"),
        ("budget: {max_hours: .nan}", "budget.max_hours: '.nan' is not a finite number of reasonable length"),
        (
            "seed: 9223372036854775808",
            "seed: should be at most 9,223,372,036,854,775,807, not 9223372036854775808",
        ),
        ("name: 12", "name: should be text (in quotes if it looks like a number), not 12"),
        (
            "budget:",
            "budget: should be a mapping of settings, not null; leave the line out to use the defaults",
        ),
        (
            "generation: {dtype: bfloat}",
            'generation.dtype: should be `auto`, `float32`, `bfloat16` or `float16`, not "bfloat", '
            "did you mean `bfloat16`?",
        ),
        ("actors: {generators: 0}", "actors.generators: should be `auto` or at least 1, not 0"),
        (
            "actors: {generators: atuo}",
            'actors.generators: should be `auto` or a whole number, not "atuo", did you mean `auto`?',
        ),
        (
            "facets: {f: {classes: 3, values: {v: {prompts: [x]}}}}",
            "facets.f.classes: should be `all` or a list, not 3",
        ),
        (
            "facets: {f: {classes: [3], values: {v: {prompts: [x]}}}}",
            "facets.f.classes.0: should be text (in quotes if it looks like a number), not 3",
        ),
        (
            "facets: {f: {classes: [basik], values: {v: {prompts: [x]}}}}",
            "facets.f.classes: no class 'basik'; the classes are basic",
        ),
        (
            "facets: {f: {values: {v: {prompts: []}}}}",
            "facets.f.values.v.prompts: has 0 entries, needs at least 1",
        ),
        ("facets: {f: {values: {v: {prompts: x}}}}", 'facets.f.values.v.prompts: should be a list, not "x"'),
        (
            "facets: {f: {values: {v: {prompts: ['']}}}}",
            'facets.f.values.v.prompts.0: should be text that is not empty, not ""',
        ),
        (
            "facets: {f: {values: {a/b: {prompts: [x]}}}}",
            'facets.f.values.a/b: should be a name of at most 100 characters without `/`, not "a/b"',
        ),
        (
            "generation: {scheduler: Euler}",
            "generation.scheduler: should be a scheduler class of diffusers, such as"
            ' `EulerDiscreteScheduler`, not "Euler"',
        ),
        (
            "generation: {loras: [{model: a, file: x.bin}]}",
            'generation.loras.0.file: should be a file name that ends in `.safetensors`, not "x.bin"',
        ),
        (
            "evaluation: {architecture: ResNet50}",
            "evaluation.architecture: should be an architecture of torchvision or timm, such as `resnet18`"
            ' or `timm:vit_tiny`, not "ResNet50"',
        ),
        (
            "facets: {f: {values: {v: {prompts: [x], share: 0.5}}}}",
            "facets.f: shares sum to 0.5, not 1",
        ),
        ("target: {per_class: 5}", "target: given twice, first at job.yaml:1"),
    ],
)
def test_a_wrong_value_is_one_line_with_place_value_and_limit(setting: str, problem: str):
    assert problems(GOOD + setting + "\n") == [f"job.yaml:4: {problem}"]


def patterns_in(schema: object) -> set[str]:
    if isinstance(schema, dict):
        own = {schema["pattern"]} if isinstance(schema.get("pattern"), str) else set()
        return own.union(*map(patterns_in, schema.values()))
    return set().union(*map(patterns_in, schema)) if isinstance(schema, list) else set()


def test_every_pattern_of_the_schema_has_words_of_its_own():
    assert patterns_in(Config.model_json_schema()) == set(PATTERNS)


def test_all_problems_come_at_once_in_the_order_of_the_file():
    text = "seed: -1\n" + GOOD.replace("50", "0") + "name: 3\nbudgt: {}\nclasses: {}\n"
    assert [line.split(": ")[:2] for line in problems(text)] == [
        ["job.yaml:1", "seed"],
        ["job.yaml:2", "target.per_class"],
        ["job.yaml:5", "name"],
        ["job.yaml:6", "budgt"],
        ["job.yaml:7", "classes"],
    ]


def test_json_problems_have_lines_too():
    text = '{\n  "target": {"per_class": 50},\n  "classes": {"a": {"prompts": ["x"]}},\n  "sead": 3\n}\n'
    assert problems(text, name="job.json") == ["job.json:4: sead: unknown key `sead`, did you mean `seed`?"]


def test_a_long_value_is_cut():
    (problem,) = problems(GOOD + f"seed: {'x' * 1000}\n")
    assert len(problem) < 150


# Overrides


def test_an_override_replaces_one_value():
    config = load(GOOD + "generation: {steps: 30, width: 64}\n", ["generation.steps=20"])
    assert (config.generation.steps, config.generation.width) == (20, 64)


def test_an_override_makes_the_sections_it_needs():
    fallback = load(GOOD, ["attempts.fallback.threshold=0.4"]).attempts.fallback
    assert fallback is not None
    assert fallback.threshold == 0.4


def test_the_last_override_of_a_value_counts():
    assert load(GOOD, ["seed=1", "seed=2"]).seed == 2


def test_an_override_is_read_as_yaml():
    config = load(GOOD, ["classes.basic.prompts=[a, b]", "generation.revision=", "name='3'"])
    assert (config.classes["basic"].prompts, config.generation.revision, config.name) == (
        ("a", "b"),
        None,
        "3",
    )


DOTTED = GOOD.replace("basic", "v1.0")


@pytest.mark.parametrize(
    "override",
    [
        'classes."v1.0".prompts=[x]',
        "classes.'v1.0'.prompts=[x]",
        "classes.v1.0.prompts=[x]",
        'classes."v1.0"."prompts"=[x]',
    ],
)
def test_an_override_reaches_a_name_with_a_dot(override: str):
    config = load(DOTTED, [override])
    assert {name: item.prompts for name, item in config.classes.items()} == {"v1.0": ("x",)}


@pytest.mark.parametrize(
    "name", [".dot", "a.b.c", "x=y", 'say "hi"', "king's", "ends.", "back\\slash", "a.b=c"]
)
def test_an_override_reaches_any_name_in_quotes(name: str):
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    document = {"target": {"per_class": 5}, "classes": {name: {"prompts": ["a"]}}}
    config = load(json.dumps(document), [f'classes."{escaped}".prompts=[x]'], name="job.json")
    assert {name: item.prompts for name, item in config.classes.items()} == {name: ("x",)}


def test_an_override_takes_the_shorter_of_two_names_unless_the_longer_is_in_quotes():
    text = GOOD + "  v1: {prompts: [a]}\n  v1.prompts: {prompts: [b]}\n"
    prompts = {name: item.prompts for name, item in load(text, ["classes.v1.prompts=[x]"]).classes.items()}
    assert (prompts["v1"], prompts["v1.prompts"]) == (("x",), ("b",))
    quoted = load(text, ['classes."v1.prompts".prompts=[x]']).classes
    assert (quoted["v1"].prompts, quoted["v1.prompts"].prompts) == (("a",), ("x",))


def test_a_problem_names_a_key_with_a_dot_as_an_override_takes_it():
    assert problems(DOTTED.replace("prompts", "prompt")) == [
        'job.yaml:3: classes."v1.0".prompt: unknown key `prompt`, did you mean `prompts`?'
    ]
    facets = 'facets: {"a.b": {classes: [x], values: {u: {prompts: [u]}}}}\n'
    assert problems(GOOD + facets) == [
        "job.yaml:4: facets.\"a.b\".classes: no class 'x'; the classes are basic"
    ]


# Names that look the same are the same


@pytest.mark.parametrize(
    ("first", "second"), [("cat", '" cat"'), ("cat", '"cat "'), ("é", '"e\\u0301"'), ('"e\\u0301"', "é")]
)
def test_two_keys_that_look_the_same_are_given_twice(first: str, second: str):
    text = f"target: {{per_class: 5}}\nclasses:\n  {first}: {{prompts: [a]}}\n  {second}: {{prompts: [b]}}\n"
    [problem] = problems(text)
    assert problem.startswith(
        f"job.yaml:4: classes.{'é' if 'é' in (first, second) else 'cat'}: given twice, first at job.yaml:3"
    )
    assert ("which is the same name" in problem) == (second.startswith('"'))


def test_names_in_a_config_are_composed_and_paths_and_prompts_are_not():
    text = json.dumps(
        {
            "dataset": {"path": "e\u0301"},
            "target": {"per_class": 5},
            "classes": {"e\u0301": {"prompts": ["e\u0301"]}},
            "facets": {"o\u0308": {"classes": ["e\u0301"], "values": {"a\u030a": {"prompts": ["x"]}}}},
            "verification": {"unjudged": ["o\u0308", "class=e\u0301"]},
        }
    )
    config = load(text, ["classes.e\u0301.labels=[x]"], name="job.json")
    assert list(config.classes) == ["é"]
    assert (list(config.facets), list(config.facets["ö"].values), config.facets["ö"].classes) == (
        ["ö"], ["å"], ("é",),
    )  # fmt: skip
    assert config.verification.unjudged == ("ö", "class=é")
    assert config.classes["é"].labels == ("x",)
    assert (config.dataset.path, config.classes["é"].prompts) == ("e\u0301", ("e\u0301",))


@pytest.mark.parametrize("name", ["__file", "__place", "__filename", "__anything"])
def test_a_facet_is_not_named_like_a_column_that_the_manifest_keeps_for_itself(name: str):
    facets = f"facets: {{{name}: {{values: {{u: {{prompts: [u]}}}}}}}}\n"
    assert problems(GOOD + facets) == [
        f"job.yaml:4: facets.{name}: names that begin with __ are the manifest's own; rename the facet"
    ]


def test_an_override_may_mend_the_file():
    assert load(GOOD.replace("50", "0"), ["target.per_class=5"]).target.per_class == 5


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("generation.stpes=20", "generation.stpes: unknown key `stpes`, did you mean `steps`?"),
        ("generatoin.steps=20", "generatoin: unknown key `generatoin`, did you mean `generation`?"),
        ("generation.steps=x", 'generation.steps: should be a whole number, not "x"'),
        ("generation.steps=[", "not valid YAML or JSON: expected the node content, but found '<stream end>'"),
        ("generation.steps", "write it as section.key=value, such as generation.steps=20"),
        ("=3", "write it as section.key=value, such as generation.steps=20"),
        ("target=3", "target: should be a mapping of settings, not 3"),
    ],
)
def test_a_wrong_override_is_named_as_it_was_given(override: str, problem: str):
    assert problems(GOOD, [override]) == [f"--set {override}: {problem}"]


# The configs that come with the project


@pytest.mark.parametrize("name", ["demo", "pizza"])
def test_the_shipped_configs_describe_the_reference_case(name: str, project: Path):
    config = load_config(project / f"configs/{name}.yaml")
    shares = {axis.name: [float(share) for share in axis.shares] for axis in config.facet_axes()}
    assert list(config.classes) == ["basic", "burnt", "combined", "mixed", "progression", "segment"]
    assert shares == {"lighting": [0.25] * 4, "burn_level": [0.4, 0.35, 0.25]}
    assert config.facets["burn_level"].classes == ("burnt",)
    assert (config.target.per_class, config.attempts.max, config.review.fraction) == (50, 3, 0.1)
    assert config.verification.threshold == 0.6
    assert config.attempts.fallback is not None
    assert config.attempts.fallback.threshold == 0.5


def test_the_models_of_the_photograph_config_are_pinned_to_commits(project: Path):
    config = load_config(project / "configs/pizza.yaml")
    for revision in (config.generation.revision, config.verification.revision):
        assert revision is not None
        assert len(bytes.fromhex(revision)) == 20


def test_the_demo_speaks_the_words_the_embedded_models_know(project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(project / "scripts")
    from embedded_training import captions

    config = load_config(project / "configs/demo.yaml")
    texts = []
    for item in config.classes.values():
        texts += [*item.prompts, *item.labels, *item.variations, *item.fallback_prompts, item.negative_prompt]
    for value in (value for facet in config.facets.values() for value in facet.values.values()):
        texts += [*value.prompts, *value.labels, value.negative_prompt]
    used = {word for text in texts for word in captions.words(text)}
    assert used - set(captions.vocabulary()) == set()


def test_the_demo_asks_in_the_wordings_of_the_training(project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(project / "scripts")
    from embedded_training import captions

    config = load_config(project / "configs/demo.yaml")
    asked = {name: item.prompts for name, item in config.classes.items()}
    for facet in config.facets.values():
        asked |= {value: item.prompts for value, item in facet.values.items()}
    taught = [captions.CLASS_WORDINGS, captions.LIGHTING_WORDINGS, captions.BURN_LEVEL_WORDINGS]
    assert asked == {name: wordings for group in taught for name, wordings in group.items()}


# Null, and settings from the command line that make something wrong

TWO_FACETS = """\
facets:
  lighting: {values: {day: {prompts: [by day], share: 0.5}, night: {prompts: [at night], share: 0.5}}}
  crust: {values: {thin: {prompts: [thin]}, thick: {prompts: [thick]}}}
"""
BELOW = f"{GOOD}  burnt: {{prompts: [x]}}\ngeneration: {{steps: 7}}\n{TWO_FACETS}"


@pytest.mark.parametrize("by", ["extends", "--set"])
@pytest.mark.parametrize(
    ("setting", "left"),
    [
        ("facets: {crust: null}", {"classes": ["basic", "burnt"], "facets": ["lighting"], "steps": 7}),
        ("classes: {burnt: null}", {"classes": ["basic"], "facets": ["lighting", "crust"], "steps": 7}),
        ("facets: null", {"classes": ["basic", "burnt"], "facets": [], "steps": 7}),
        ("facets: {lighting: null, crust: null}", {"classes": ["basic", "burnt"], "facets": [], "steps": 7}),
        ("generation: null", {"classes": ["basic", "burnt"], "facets": ["lighting", "crust"], "steps": None}),
    ],
)
def test_null_takes_away_what_the_config_below_has(by: str, setting: str, left: dict[str, Any]):
    section, _, entries = setting.partition(": {")
    dotted = [f"{section}.{entry}" for entry in entries.rstrip("}").split(", ")] if entries else [setting]
    given = [each.replace(": null", "=null") for each in dotted]
    config = extended(setting + "\n", BELOW) if by == "extends" else load(BELOW, given)
    shown = {"classes": [*config.classes], "facets": [*config.facets], "steps": config.generation.steps}
    assert shown == left | {"steps": left["steps"] or load(GOOD).generation.steps}


@pytest.mark.parametrize("by", ["extends", "--set"])
def test_a_section_that_must_be_there_is_missing_once_it_is_taken_away(by: str):
    with pytest.raises(ConfigError) as raised:
        extended("classes: null\n", BELOW) if by == "extends" else load(BELOW, ["classes=null"])
    assert "classes: missing" in str(raised.value)


def test_a_mapping_of_names_is_not_null_where_there_is_nothing_to_take_away():
    [problem] = problems(f"{GOOD}facets:\n", [])
    assert problem.endswith("not null; leave the line out to use the defaults")


def test_an_entry_that_is_not_there_is_not_taken_away():
    [problem] = problems(BELOW, ["facets.crusts=null"])
    assert problem == (
        "--set facets.crusts=null: facets.crusts: should be a mapping of settings, not null; "
        "null removes an existing entry, and there is none of this name"
    )


@pytest.mark.parametrize(
    ("overrides", "place"),
    [
        (["facets.lighting.values.night.share=0.9"], "--set facets.lighting.values.night.share=0.9"),
        (["seed=3", "facets.lighting.values.night.share=0.9", "seed=4"],
         "--set facets.lighting.values.night.share=0.9"),
        (["target.total=9"], "--set target.total=9"),
    ],
)  # fmt: skip
def test_what_a_setting_from_the_command_line_makes_wrong_is_not_blamed_on_the_file(overrides, place):
    [problem] = problems(BELOW, overrides)
    assert problem.startswith(f"{place}: ")


def test_what_was_wrong_in_the_file_stays_its_own_whatever_else_is_set():
    wrong = BELOW.replace("share: 0.5}}}", "share: 0.9}}}")
    for overrides in ([], ["seed=3"], ["facets.lighting.values.night.prompts=[late]"]):
        [problem] = problems(wrong, overrides)
        assert problem.startswith("job.yaml:")
    unread = wrong.replace("per_class: 50", "per_class: 0")
    [problem] = problems(unread, ["target.per_class=5"])
    assert problem.startswith("job.yaml:")
