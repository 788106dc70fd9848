"""A Ray cluster of two nodes with its job server, for as long as standard input stays open."""

from __future__ import annotations

import json
import sys

from ray.cluster_utils import Cluster


def main(dashboard_port: int) -> None:
    head = {"num_cpus": 1, "include_dashboard": True, "dashboard_port": dashboard_port}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    dashboard = f"http://127.0.0.1:{dashboard_port}"
    print(json.dumps({"address": cluster.address, "dashboard": dashboard}), flush=True)
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))
