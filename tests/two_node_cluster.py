"""A Ray cluster of two nodes with its job server, for as long as standard input stays open."""

from __future__ import annotations

import json
import sys
import time

from ray.cluster_utils import Cluster
from ray.job_submission import JobSubmissionClient

START_LIMIT_S = 120


def main(dashboard_port: int, agent_port: int) -> None:
    # Job agents listen on a fixed port unless told otherwise, and another Ray on this machine may have it.
    head = {
        "num_cpus": 1,
        "include_dashboard": True,
        "dashboard_port": dashboard_port,
        "dashboard_agent_listen_port": agent_port,
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    # Two nodes of one machine would unpack a job's files into one folder, one over those of the other.
    cluster.add_node(num_cpus=1, runtime_env_dir_name="runtime_resources_of_the_other")
    cluster.wait_for_nodes()
    dashboard = f"http://127.0.0.1:{dashboard_port}"
    wait_until_jobs_are_taken(dashboard)
    print(json.dumps({"address": cluster.address, "dashboard": dashboard}), flush=True)
    sys.stdin.read()
    cluster.shutdown()


def wait_until_jobs_are_taken(dashboard: str) -> None:
    """The nodes are there some seconds before their agents, which start the jobs."""
    give_up = time.monotonic() + START_LIMIT_S
    while True:
        try:
            JobSubmissionClient(dashboard).submit_job(entrypoint="true")
            return
        except (RuntimeError, ConnectionError):
            if time.monotonic() > give_up:
                raise
            time.sleep(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
