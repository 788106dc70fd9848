from __future__ import annotations

import socket
from types import SimpleNamespace

import pytest
from ray._private import worker as ray_worker

from actors.cluster.connect import _notices_dropped, alone, connected, parse_address, refuse_silent
from actors.cluster.sizing import Resources, fit
from balancer.config.schema import ActorsConfig
from balancer.errors import ClusterError, UsageError


def resources(cpus=8.0, gpus=()):
    return Resources(cpus=cpus, gpus=tuple(gpus), driver_node="n0")


def fleet(wanted=None, batches=1000, **has):
    return fit(resources(**has), ActorsConfig(**(wanted or {})), batches)


def test_without_gpus_each_core_has_a_generator():
    assert fleet(cpus=2).generators == 2


def test_each_gpu_has_a_generator_and_verifiers_share_their_gpus():
    planned = fleet(gpus=[8])
    assert (planned.generators, planned.verifiers) == (8, 1)
    assert planned.gpus_per_generator + planned.gpus_per_verifier <= 1


def test_no_more_generators_are_started_than_there_are_batches():
    assert fleet(gpus=[8], batches=3).generators == 3


def test_two_generators_fit_one_gpu_if_each_takes_less_than_half():
    assert fleet({"gpus_per_generator": 0.45}, gpus=[1]).generators == 2


def test_a_share_of_a_gpu_is_never_put_together_from_two():
    # 0.7 + 0.7 leaves 0.6 of two GPUs, but no GPU has another 0.7 free.
    with pytest.raises(ClusterError, match="2 GPUs can take 2"):
        fleet({"gpus_per_generator": 0.7, "generators": 3}, gpus=[2])


def test_more_generators_than_gpus_are_refused_with_both_numbers():
    with pytest.raises(ClusterError, match=r"cannot place 5 generators .*: 2 GPUs can take 2"):
        fleet({"generators": 5}, gpus=[2])


def test_a_verifier_that_does_not_fit_beside_the_generators_is_refused():
    with pytest.raises(ClusterError, match="cannot place 1 verifier "):
        fleet({"gpus_per_generator": 1.0}, gpus=[2])


def test_verifiers_on_cpu_leave_whole_gpus_to_generators():
    planned = fleet({"gpus_per_generator": 1.0, "gpus_per_verifier": 0}, gpus=[2])
    assert (planned.generators, planned.gpus_per_verifier) == (2, 0)


def test_gpus_that_a_generator_reserves_and_does_not_use_are_named():
    planned = fleet({"gpus_per_generator": 2, "gpus_per_verifier": 0}, gpus=[4])
    assert "each generator uses 1 of its 2 GPUs" in planned.reasons[-1]
    assert len(fleet({"gpus_per_generator": 1, "gpus_per_verifier": 0}, gpus=[4]).reasons) == 2


def test_a_config_that_needs_cuda_is_refused_without_a_gpu():
    with pytest.raises(ClusterError, match="needs a GPU") as caught:
        fleet({"device": "cuda"})
    assert caught.value.exit_code == 4


def test_more_generators_than_cores_are_refused():
    with pytest.raises(ClusterError, match="cannot place 3 generators: the machine has 2 CPU cores"):
        fleet({"generators": 3}, cpus=2)


def test_every_number_has_its_reason():
    assert "2 CPU cores" in fleet(cpus=2).reasons[0]
    assert "asks for it" in fleet({"generators": 1}, cpus=2).reasons[0]


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ({}, "4 generators: one for each of 4 GPUs"),
        (
            {"gpus_per_generator": 2, "gpus_per_verifier": 0},
            "2 generators: 4 GPUs that hold 2 of 2 GPU each",
        ),
        ({"gpus_per_generator": 0.45}, "8 generators: 4 GPUs that hold 8 of 0.45 GPU each"),
    ],
)
def test_the_reason_for_a_number_of_generators_has_that_number(wanted, reason):
    assert fleet(wanted, gpus=[4]).reasons[0] == reason


def test_a_number_of_verifiers_that_the_config_gives_is_not_worked_out():
    assert (
        fleet({"verifiers": 3}, gpus=[4]).reasons[1]
        == "3 verifiers beside them: actors.verifiers asks for it"
    )


def test_a_generator_larger_than_every_node_is_refused_with_both_numbers():
    with pytest.raises(ClusterError, match=r"no generator with 2 GPUs fits: the largest node has 1"):
        fleet({"gpus_per_generator": 2, "gpus_per_verifier": 0}, gpus=[1, 1])


def test_an_address_that_does_not_answer_is_one_clear_error(monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        port = unused.getsockname()[1]
        with (
            pytest.raises(ClusterError, match=f"127.0.0.1:{port} does not answer"),
            connected(f"127.0.0.1:{port}"),
        ):
            pass


def test_ray_client_addresses_are_refused_with_the_way_to_do_it(monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(ClusterError, match="Ray Client") as caught, connected("ray://head:10001"):
        pass
    assert "balancer submit" in caught.value.hint


@pytest.mark.parametrize(
    "address",
    [
        "a..b:6379", "a" * 70 + ":6379", ".:6379", "127.0.0.1:²", "127.0.0.1:\u0661",
        "127.0.0.1:" + "9" * 5000,
        "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:-1", "\udcff\udcfe:1", "foo", ":", ":6379", " ", "AUTO",
        "127.0.0.1:1\nx", "127.0.0.1:1\n", "127.0.0.1\t:1", "127.0.0.1\0:1", "::1:1", "[127.0.0.1:1", "[]:1",
        "/dev/zero", "unix:/tmp/x", "http://127.0.0.1:1", "h." * 200 + "x:1", "h" * 100_000 + ":1",
        "\x1b[31mx:1",
    ],
    ids=lambda address: repr(address)[:20],
)  # fmt: skip
def test_what_is_no_address_is_refused_in_one_line_that_names_it(monkeypatch, address):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("socket.create_connection", lambda *_, **options: pytest.fail("it is asked"))
    with pytest.raises(ClusterError, match="is not the address of a Ray cluster") as caught:
        refuse_silent(address)
    assert repr(address)[:50] in caught.value.message
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 500
    assert "host:port" in caught.value.hint


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("127.0.0.1:6379", ("127.0.0.1", 6379)),
        ("head:1", ("head", 1)),
        ("my_head-0.ray-2.svc.:65535", ("my_head-0.ray-2.svc.", 65535)),
        ("[::1]:6379", ("::1", 6379)),
        ("[fe80::1%eth0]:6379", ("fe80::1%eth0", 6379)),
    ],
)
def test_an_address_is_a_host_and_a_port(address, parts):
    assert parse_address(address) == parts


# ---- two runs in one process ---------------------------------------------------------------------------


def test_a_second_run_in_one_process_is_refused_at_once_and_may_follow_the_first(monkeypatch):
    connected_by_us = False
    monkeypatch.setattr("ray.is_initialized", lambda: connected_by_us)
    with alone():
        with pytest.raises(UsageError, match="another run is under way in this process"), alone():
            pass
        connected_by_us = True
        with pytest.raises(UsageError, match="another run is under way in this process"), alone():
            pass
    connected_by_us = False
    with alone():
        pass


def test_runs_on_a_ray_of_the_users_share_it(monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    with alone(), alone():
        pass


@pytest.mark.parametrize("address", ["10.0.0.9:6379", "127.0.0.1:6380", "elsewhere:6379", "6379"])
def test_a_run_goes_to_no_other_cluster_than_it_is_told(monkeypatch, address):
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(gcs_address="127.0.0.1:6379"))
    monkeypatch.setattr("actors.cluster.connect._resources", resources)
    with pytest.raises(
        ClusterError, match=f"connected to Ray at 127.0.0.1:6379 already, .* go to {address}$"
    ):
        refuse_silent(address)
    with pytest.raises(ClusterError, match="connected to Ray"), connected(address):
        pass
    for same in (None, "auto", "local", "127.0.0.1:6379", "localhost:6379"):
        refuse_silent(same)
        with connected(same):
            pass


def test_what_ray_says_of_dead_workers_is_not_among_the_results_of_a_command(capsys):
    notice = {"lines": ["A worker died"], "pid": "raylet", "is_err": False, "ip": None, "job": None}
    with _notices_dropped():
        ray_worker.print_to_stdstream(notice, ignore_prefix=False)
    assert capsys.readouterr().out == ""
    ray_worker.print_to_stdstream(notice, ignore_prefix=False)
    assert "A worker died" in capsys.readouterr().out
