"""A run that an earlier version began is finished by this one, as that version would have finished it.

`tests/data/earlier_run` was left by `balancer run config.yaml --out run --limit 3` at version 0.1.0, before
its modules were moved into folders; the sums are those of the same run undisturbed at that version.
"""

from __future__ import annotations

import shutil

import balancer
from balancer.manifest import check_run
from balancer.storage import open_storage

GENERATED = {
    "apple/bright/0000-1": "18f92e61ced030b780ac15e744a3a1eb29744312c664b7ae88cfd6f34c1124b5",
    "apple/bright/0001-1": "0a90424a143f02574aa44ba129d1e592c569df18a71b475a9af03ffb986ecb26",
    "apple/dim/0000-1": "e8338b80b76cd664f5b977d5bcf064b6c458b1bebec63f352d8e374e2f37815a",
    "pear/bright/0000-1": "6205765c4f5ba53d40979c08b143468706affecaf3c5f56d19b885186e36b506",
    "pear/bright/0001-3": "fcdf04c174cb02c7ae23564961fdb15201348e27298992d66fd6e19887bd974a",
    "pear/dim/0000-1": "6ac4c7135aeff79c998d2b2fd8c4487287e494dc047e17ddde26bcae229c1eb9",
    "pear/dim/0001-2": "b640ac6da57f7911bbe458460cbe352cd0ff05beeebda78b5be61a12eac37823",
    "pear/dim/0002-1": "976813236e301cca01764a24fbfaf0d50730fd824ebb085f1e3f8e7723f498bd",
}


def test_a_run_begun_by_an_earlier_version_is_finished_with_the_same_images(
    project, tmp_path, monkeypatch, here
):
    shutil.copytree(project / "tests/data/earlier_run", tmp_path / "kept")
    monkeypatch.chdir(tmp_path / "kept")
    assert balancer.run_status("run")["accepted"] == 3
    result = balancer.run("config.yaml", "run")
    assert (result.state, result.accepted) == ("complete", len(GENERATED))
    rows = balancer.open_manifest("run").to_table(["id", "sha256"], "source = 'synthetic'")
    assert {row["id"]: row["sha256"] for row in rows.to_pylist()} == GENERATED
    assert check_run(open_storage("run", create=False)).problems == ()
