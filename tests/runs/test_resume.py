"""Going on with a run: what the schedule is made of, and that the process is left as it was."""

from __future__ import annotations

import copy
import gc
import json
import unicodedata

import pyarrow as pa
import pytest

from balancer.config.load import load_config
from balancer.config.schema import Config
from balancer.errors import UsageError
from balancer.manifest import ManifestLog
from balancer.manifest.schema import rows_to_table
from balancer.runs.resume import check_unchanged, is_another_verifier, restore_schedule, spelled_as_begun
from tests.manifest_samples import MemoryStorage, rejected, row, run_info, start, void

INFO = run_info()


def resumed(rows: pa.Table):
    return restore_schedule(INFO, Config.model_validate(INFO.config), rows, None)


def test_a_schedule_goes_on_where_the_committed_rows_left_it():
    log: ManifestLog = start(MemoryStorage())
    log.commit([rejected("basic/dim/0000"), row("basic/dim/0000", 2), void("basic/dim/0001")])
    schedule = resumed(log.table())
    assert (schedule.candidates, len(schedule.accepted), schedule.open) == (2, 1, 4)
    batch = [candidate.id for candidate in schedule.next_batch(4)]
    assert "basic/dim/0001-1" in batch
    assert "basic/dim/0000-3" not in batch


@pytest.mark.parametrize(
    "change",
    [{"typicality": "never"}, {"max_true_lost": 0.1}, {"negatives": ("a fox",)}, {"heads": "never"}],
    ids=lambda c: next(iter(c)),
)
def test_what_decides_who_is_of_the_domain_is_settled_when_a_run_begins(change):
    begun = Config.model_validate(INFO.config)
    models = {name: model | {"embedding_dim": INFO.embedding_dim} for name, model in INFO.models.items()}
    changed = begun.model_copy(update={"verification": begun.verification.model_copy(update=change)})
    with pytest.raises(UsageError, match=f"settled when the run began: verification.{next(iter(change))}"):
        check_unchanged(changed, models, INFO, allowed=True)


def test_another_verifier_is_told_by_its_weights():
    def with_hash(sha256):
        return {"verifier": INFO.models["verifier"] | {"sha256": sha256}}

    info = run_info(models=INFO.models | with_hash("a"))
    assert not is_another_verifier(with_hash("a"), info)
    assert is_another_verifier(with_hash("b"), info)
    assert not is_another_verifier(with_hash(None), info)  # not yet known


@pytest.mark.parametrize("was_on", [True, False])
def test_garbage_is_collected_afterwards_if_it_was_before(was_on):
    rows = rows_to_table([row("basic/dim/0000")], INFO.schema())
    before = gc.isenabled()
    try:
        (gc.enable if was_on else gc.disable)()
        resumed(rows)
        assert gc.isenabled() == was_on
        with pytest.raises(KeyError):
            resumed(rows.drop_columns(["slot"]))
        assert gc.isenabled() == was_on
    finally:
        (gc.enable if before else gc.disable)()


def test_nothing_looks_for_garbage_while_a_history_is_taken_in(monkeypatch):
    seen: list[bool] = []
    monkeypatch.setattr("balancer.runs.resume.Schedule", lambda *quotas, **how: seen.append(gc.isenabled()))
    resumed(INFO.schema().empty_table())
    assert seen == [False]


def test_a_run_begun_with_names_that_were_not_composed_goes_on_with_them(tmp_path):
    e, o = (unicodedata.normalize("NFD", letter) for letter in "éö")
    settings = {
        "classes": {e: {"prompts": [e]}, "plain": {"prompts": ["a"]}},
        "facets": {o: {"classes": [e], "values": {o: {"prompts": [o]}, "x": {"prompts": ["x"]}}}},
        "target": {"per_class": 5},
        "verification": {"unjudged": [o, f"class={e}", f"{o}={o}"]},
    }
    before = Config.model_validate(settings)  # as earlier versions read it
    (tmp_path / "job.json").write_text(json.dumps(settings))
    now = load_config(tmp_path / "job.json", ["actors.generators=2"])
    assert list(now.classes) == ["é", "plain"]
    known = run_info(config=before.model_dump(mode="json"), fingerprint=before.fingerprint(), facets=[o])
    taken = spelled_as_begun(now, known)
    assert (taken.fingerprint(), taken.actors.generators) == (before.fingerprint(), 2)
    check_unchanged(
        taken, {"verifier": {"model": "embedded", "embedding_dim": known.embedding_dim}}, known, False
    )
    assert spelled_as_begun(now, run_info(config=now.model_dump(mode="json"), facets=["ö"])) is now
    assert spelled_as_begun(now, None) is now


OTHER_PLANS = {
    "target.per_class": lambda config: config["target"].update(per_class=12),
    "classes.mixed": lambda config: config["classes"].update(mixed={"prompts": ["mixed"]}),
    "facets.burn_level.classes": lambda config: config["facets"]["burn_level"].update(classes="all"),
    "another order": lambda config: config.update(classes=dict(reversed(config["classes"].items()))),
}


@pytest.mark.parametrize("named", OTHER_PLANS)
@pytest.mark.parametrize("allowed", [False, True])
def test_a_change_that_no_option_allows_is_refused_with_a_hint_that_works(named, allowed):
    """--allow-config-change is not offered where it does not help."""
    settings = copy.deepcopy(INFO.config)
    OTHER_PLANS[named](settings)
    settings["classes"]["basic"]["prompts"] = ["another wording"]
    with pytest.raises(UsageError) as refused:
        check_unchanged(Config.model_validate(settings), MODELS, INFO, allowed)
    assert f"the plan of a started run is fixed, and {named}" in refused.value.message
    assert "prompts" not in refused.value.message
    assert "--allow-config-change" not in refused.value.hint


def test_a_verifier_of_another_size_is_refused_with_a_hint_that_works():
    other = {"verifier": {"model": "another", "embedding_dim": INFO.embedding_dim + 1}}
    with pytest.raises(UsageError, match="embeddings") as refused:
        check_unchanged(Config.model_validate(INFO.config), other, INFO, False)
    assert "--allow-config-change" not in refused.value.hint


MODELS = {"verifier": {"model": "embedded", "embedding_dim": INFO.embedding_dim}}
