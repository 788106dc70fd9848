"""Which settings of a config count as asked for, and which prompts are cut."""

from __future__ import annotations

import json

import pytest
import yaml
from click.testing import CliRunner

from actors.loop.batch import Batch
from actors.models.families.checks import asked, check_generator, find_problems
from actors.models.families.lengths import TURNS, Cut, Lengths, check_lengths, find_cut, prompts_of
from actors.models.families.table import FAMILIES, Text
from actors.specs import generator_spec
from balancer.cells import Candidate, Cell, Slot
from balancer.cli import main
from balancer.config.load import load_config
from balancer.config.schema import Config
from balancer.errors import ConfigError
from balancer.scheduling.prompts import ladder, request_for
from balancer.verification.verdict import Used
from tiny_pipelines import save_pipeline, tokenizer

CELL = Cell("cat", (("light", "dim"),))


def make_config(**sections):
    usual = {
        "classes": {"cat": {"prompts": ["a cat"], "negative_prompt": "a dog"}},
        "facets": {"light": {"values": {"dim": {"prompts": ["in dim light"], "negative_prompt": "bright"}}}},
        "target": {"per_class": 3},
    }
    return Config.model_validate(usual | sections)


@pytest.fixture(scope="module")
def schnell(tmp_path_factory):
    return save_pipeline("FLUX.1 schnell", tmp_path_factory.mktemp("schnell"))


def test_a_default_is_not_asked_for():
    assert asked(make_config()).guidance == ()
    assert asked(make_config(generation={"guidance": 7.5})).guidance == (("generation.guidance", 7.5),)


def test_guidance_of_a_rung_is_asked_for():
    wanted = asked(make_config(attempts={"rungs": [{}, {"guidance": 9}]}))
    assert wanted.guidance == (("attempts.rungs[1].guidance", 9),)
    assert wanted.every_guidance == (7.5, 9)


def test_the_usual_guidance_does_not_count_if_every_attempt_has_its_own():
    assert asked(make_config(attempts={"max": 1, "rungs": [{"guidance": 0}]})).every_guidance == (0,)


def test_negative_prompts_are_named_by_their_settings():
    wanted = asked(make_config(generation={"negative_prompt": "text"}))
    assert wanted.negatives == (
        "generation.negative_prompt",
        "classes.cat.negative_prompt",
        "facets.light.values.dim.negative_prompt",
    )


def test_null_leaves_all_negative_prompts_out():
    config = make_config(generation={"negative_prompt": None})
    assert asked(config).negatives == ()
    assert request_for(Candidate(Slot(CELL, 0), 1), ladder(config)[0], config).negative_prompt == ""


def test_a_generator_is_held_to_what_its_config_asks_for():
    config = make_config(generation={"guidance": 3})
    assert generator_spec(config).asked == asked(config)


def test_a_batch_says_what_went_into_the_call():
    config = make_config()
    candidate, rung = Candidate(Slot(CELL, 0), 1), ladder(config)[0]
    batch = Batch((candidate,), (rung,), (request_for(candidate, rung, config),))
    batch.correct(None)
    assert (batch.rungs[0].guidance, batch.requests[0].negative_prompt) == (7.5, "a dog, bright")
    batch.correct(Used(None, negative=False))
    assert (batch.rungs[0].guidance, batch.requests[0].negative_prompt) == (None, "")


def test_every_problem_of_a_config_is_listed(schnell):
    generation = {
        "model": str(schnell),
        "guidance": 3.5,
        "width": 72,
        "height": 64,
        "offload": "text_encoders",
    }
    with pytest.raises(ConfigError) as error:
        check_generator(make_config(generation=generation), ask_hub=False)
    assert [problem.partition(":")[0] for problem in error.value.problems] == [
        "generation.guidance",
        "classes.cat.negative_prompt and 1 more",
        "generation.width, generation.height",
        "generation.offload",
    ]
    assert "makes no image of 72 x 64; 64 x 64 and 80 x 64 work" in error.value.problems[2]


def test_guidance_that_is_off_leaves_negative_prompts_without_effect():
    problems = find_problems(
        FAMILIES["StableDiffusionXLPipeline"], 8, asked(make_config(generation={"guidance": 0}))
    )
    assert problems == [
        "classes.cat.negative_prompt and 1 more: no effect, because negative prompts act through guidance,"
        " which is off in every attempt (0); set generation.guidance above 1, or set"
        " generation.negative_prompt to null, which leaves all negative prompts out"
    ]


def test_a_model_on_the_hub_is_not_asked_for_by_a_plan():
    generation = {"model": "org/model", "revision": "0" * 40}
    assert check_generator(make_config(generation=generation), ask_hub=False) is None
    assert check_lengths(make_config(generation=generation), [CELL]) is None


# ---- prompts that are cut ------------------------------------------------------------------------------


def test_the_words_that_a_tokenizer_cuts_are_named():
    """Every letter is a token, and two more begin and end the text."""
    short, long = "a cat", "a cat, in dim light, on a table"
    assert list(find_cut(tokenizer(16), Text("tokenizer"), [short, long])) == [
        Cut(long, "light, on a table", len(long) + 2, 16)
    ]


def test_a_word_that_is_cut_in_its_middle_is_lost():
    (cut,) = find_cut(tokenizer(14), Text("tokenizer"), ["a cat, in dim light"])
    assert cut.lost == "dim light"


def test_what_a_template_adds_counts_and_is_never_lost_itself():
    text = Text("tokenizer", 12, "asked: {}!!!!")
    assert [cut.lost for cut in find_cut(tokenizer(), text, ["cat", "cats and dogs"])] == ["cats and dogs"]


def test_prompts_of_all_rungs_are_looked_at():
    rungs = [{}, {"strengthen": True}]
    facets = {"light": {"values": {"dim": {"prompts": ["dim", "dark"]}}}}
    texts = set(prompts_of(make_config(facets=facets, attempts={"rungs": rungs}), [CELL]))
    assert {"a cat, dim", "dim, dark, a cat", "a dog"} <= texts
    assert TURNS > 2


def test_a_summary_names_how_many_are_cut_and_what_is_lost():
    assert str(Lengths(3, ())) == "3 prompts and negative prompts fit into the generator's tokenizer"
    cut = tuple(Cut("p", f"words {number}", 90 + number, 77) for number in range(5))
    assert str(Lengths(9, cut)) == (
        "5 of 9 prompts are cut after 77 tokens (the longest has 94); lost: 'words 4'; 'words 3';"
        " 'words 2' and 2 more"
    )


# ---- commands ------------------------------------------------------------------------------------------


def command(name, tmp_path, project, *arguments, **generation):
    values = yaml.safe_load((project / "configs" / "demo.yaml").read_text())
    values["generation"] = {"width": 64, "height": 64, "steps": 2, **generation}
    values["classes"]["mixed"]["variations"] = ["beside " + "a table and " * 8 + "a window"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    return CliRunner().invoke(main, [name, str(tmp_path / "config.yaml"), *arguments])


def test_plan_refuses_what_has_no_effect(tmp_path, project, schnell):
    result = command("plan", tmp_path, project, "--no-preflight", model=str(schnell), guidance=3.5)
    assert result.exit_code == 2
    assert "generation.guidance: 3.5 has no effect, because FLUX.1 schnell takes no guidance" in result.stderr


def test_plan_shows_the_words_that_are_lost(tmp_path, project, tmp_path_factory):
    model = save_pipeline("SD 1.5", tmp_path_factory.mktemp("sd"))
    result = command("plan", tmp_path, project, "--no-preflight", "--json", model=str(model))
    assert "are cut after 77 tokens" in result.stderr
    assert "a window" in result.stderr
    cut = json.loads(result.stdout)["prompts"]["cut"]
    assert cut
    assert all(one["prompt"].endswith(one["lost"]) and one["tokens"] > 77 for one in cut)


def test_doctor_names_the_family_and_the_prompts_that_are_cut(tmp_path, project, tmp_path_factory):
    model = save_pipeline("SD 1.5", tmp_path_factory.mktemp("sd"))
    result = command("doctor", tmp_path, project, "--json", model=str(model))
    findings = {one["what"]: one for one in json.loads(result.stdout)["findings"]}
    assert findings["generator settings"]["detail"] == "Stable Diffusion"
    assert findings["prompts"]["state"] == "warning"
    assert "are cut after 77 tokens" in findings["prompts"]["detail"]


def test_the_demo_is_not_cut(project):
    result = CliRunner().invoke(
        main, ["plan", str(project / "configs/demo.yaml"), "--no-preflight", "--json"]
    )
    prompts = json.loads(result.stdout)["prompts"]
    assert (prompts["prompts"] > 50, prompts["cut"]) == (True, [])


@pytest.mark.parametrize(
    ("name", "pipeline"),
    [
        ("pizza", "StableDiffusionXLPipeline"),
        ("pizza-fast", "StableDiffusionXLPipeline"),
        ("pizza-flux", "FluxPipeline"),
        ("pizza-z-image", "ZImagePipeline"),
    ],
)
def test_the_configs_of_known_models_set_nothing_without_effect(name, pipeline, project):
    config = load_config(project / "configs" / f"{name}.yaml")
    family = FAMILIES[pipeline]
    assert find_problems(family, 8 * family.patch, asked(config)) == []
    assert len(bytes.fromhex(config.generation.revision or "")) == 20
    assert check_generator(config, ask_hub=False) is None  # the plan goes on without the hub
