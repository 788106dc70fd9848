"""A run as a RayJob of KubeRay, with its config in a ConfigMap.

Fields are those of `ray.io/v1` in KubeRay 1.7.0 (ray-operator/apis/ray/v1), within the operator's own checks
(`ValidateRayJobSpec`). Retries make a new cluster each, which is safe because a run resumes from its bucket.
"""

from __future__ import annotations

import base64
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from balancer.errors import EXIT_SHORT, UsageError
from balancer.submission.fleet import Nodes
from balancer.submission.parcel import CONFIG_NAME, Parcel

KUBERAY = "1.7.0"

CONFIG_FOLDER = "/etc/balancer"
MODELS_FOLDER = "/models"
SCRIPT = "run.sh"

KEEP_FAILED_S = 3600
"""A failed cluster stays so long, for its logs."""

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_IMAGE = re.compile(r"[A-Za-z0-9][\w.\-/:@]{0,300}", re.ASCII)
_FOLDER = re.compile(r"(/[A-Za-z0-9][\w.-]*){1,10}", re.ASCII)
_PLAIN = re.compile(r"[A-Za-z/][\w./:@ -]*[\w/]", re.ASCII)
_NOT_TEXT = frozenset("yes no on off true false null nan".split())


@dataclass(frozen=True, slots=True)
class Pods:
    """What the user says of the cluster. Secrets are named, never read."""

    image: str
    namespace: str | None = None
    token_secret: str | None = None
    secrets: tuple[str, ...] = ()
    service_account: str | None = None
    model_cache: str | None = None
    volumes: tuple[tuple[str, str], ...] = ()
    """Claim and folder of each that is mounted in every pod."""
    retries: int = 2


def check_pods(pods: Pods) -> None:
    """UsageError for a name that Kubernetes does not take."""
    if not _IMAGE.fullmatch(pods.image):
        raise UsageError(f"--image {pods.image!r} is not the name of an image")
    named = {
        "--namespace": [pods.namespace],
        "--token-secret": [pods.token_secret],
        "--secret": pods.secrets,
        "--service-account": [pods.service_account],
        "--model-cache": [pods.model_cache],
        "--volume": [claim for claim, _ in pods.volumes],
    }
    for option, names in named.items():
        for name in names:
            if name is not None and not _LABEL.fullmatch(name):
                raise UsageError(
                    f"{option} {name!r} is not a name of Kubernetes",
                    hint="use lower-case letters, digits and -; give the name of a secret, never its content",
                )

    for _, folder in pods.volumes:
        if not _FOLDER.fullmatch(folder) or folder in (CONFIG_FOLDER, MODELS_FOLDER):
            raise UsageError(
                f"--volume: {folder!r} is not a folder to mount at", hint="write CLAIM:/mnt/data"
            )


def manifest(name: str, parcel: Parcel, command: Sequence[str], pods: Pods, nodes: Nodes, ray: str) -> str:
    """Two documents: the ConfigMap and the RayJob, both called `name`. `ray` is the version of Ray."""
    documents = [_config_map(name, parcel, command, pods), _ray_job(name, pods, nodes, ray)]
    return "---\n".join(_yaml(document) for document in documents)


def script(command: Sequence[str]) -> str:
    """Run, and take a run that ended short for done: another try would find the same."""
    return (
        "#!/bin/sh\n"
        f"{shlex.join(command)}\n"
        "code=$?\n"
        f'if [ "$code" -eq {EXIT_SHORT} ]; then\n'
        '    echo "ended with images missing; not a failure, so no retry"\n'
        "    exit 0\n"
        "fi\n"
        'exit "$code"\n'
    )


def _metadata(name: str, pods: Pods) -> dict[str, Any]:
    named: dict[str, Any] = {"name": name}
    if pods.namespace is not None:
        named["namespace"] = pods.namespace
    return named | {"labels": {"app.kubernetes.io/name": "balancer", "app.kubernetes.io/instance": name}}


def _config_map(name: str, parcel: Parcel, command: Sequence[str], pods: Pods) -> dict[str, Any]:
    document: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(name, pods),
        "data": {SCRIPT: script(command), CONFIG_NAME: parcel.text},
    }
    if parcel.files:
        document["binaryData"] = {
            file: base64.b64encode(data).decode("ascii") for file, data in parcel.files.items()
        }
    return document


def _ray_job(name: str, pods: Pods, nodes: Nodes, ray: str) -> dict[str, Any]:
    # The entrypoint is one plain word and a path: KubeRay puts it into a shell command as it is.
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": _metadata(name, pods),
        "spec": {
            "entrypoint": f"sh {CONFIG_FOLDER}/{SCRIPT}",
            "backoffLimit": pods.retries,
            "deletionStrategy": {
                "deletionRules": [
                    _rule("DeleteCluster", {"jobStatus": "SUCCEEDED"}, 0),
                    _rule("DeleteCluster", {"jobStatus": "FAILED"}, KEEP_FAILED_S),
                    _rule("DeleteCluster", {"jobDeploymentStatus": "Failed"}, KEEP_FAILED_S),
                ]
            },
            "rayClusterSpec": _ray_cluster(name, pods, nodes, ray),
        },
    }


def _rule(policy: str, condition: dict[str, str], seconds: int) -> dict[str, Any]:
    return {"policy": policy, "condition": {**condition, "ttlSeconds": seconds}}


def _ray_cluster(name: str, pods: Pods, nodes: Nodes, ray: str) -> dict[str, Any]:
    auth = {"mode": "token"} | ({"secretName": pods.token_secret} if pods.token_secret else {})
    head = _container("ray-head", pods, cpus=4, memory="16Gi", gpus=0)
    head["ports"] = [
        {"name": "gcs-server", "containerPort": 6379},
        {"name": "dashboard", "containerPort": 8265},
    ]
    worker = _container("ray-worker", pods, cpus=nodes.cpus, memory=nodes.memory, gpus=nodes.gpus)
    cluster: dict[str, Any] = {"rayVersion": ray, "authOptions": auth}
    if nodes.most > nodes.count:
        cluster |= {"enableInTreeAutoscaling": True, "autoscalerOptions": {"idleTimeoutSeconds": 300}}
    return cluster | {
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0"},  # no actor takes the memory of the driver
            "template": _pod(name, pods, head),
        },
        "workerGroupSpecs": [
            {
                "groupName": "gpu" if nodes.gpus else "cpu",
                "replicas": nodes.count,
                "minReplicas": nodes.count,
                "maxReplicas": nodes.most,
                "rayStartParams": {},
                "template": _pod(name, pods, worker),
            }
        ],
    }


def _pod(name: str, pods: Pods, container: dict[str, Any]) -> dict[str, Any]:
    if pods.model_cache is None:
        models: dict[str, Any] = {"name": "models", "emptyDir": {}}
    else:
        models = {"name": "models", "persistentVolumeClaim": {"claimName": pods.model_cache}}
    mounted = [
        {"name": f"volume-{number}", "persistentVolumeClaim": {"claimName": claim}}
        for number, (claim, _) in enumerate(pods.volumes)
    ]
    spec: dict[str, Any] = {
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "fsGroup": 1000},
        "containers": [container],
        "volumes": [{"name": "config", "configMap": {"name": name}}, models, *mounted],
    }
    if pods.service_account is not None:
        spec["serviceAccountName"] = pods.service_account
    return {"spec": spec}


def _container(name: str, pods: Pods, *, cpus: int, memory: str, gpus: int) -> dict[str, Any]:
    amounts: dict[str, Any] = {"cpu": str(cpus), "memory": memory}
    if gpus:
        amounts["nvidia.com/gpu"] = str(gpus)
    container: dict[str, Any] = {
        "name": name,
        "image": pods.image,
        "securityContext": {"allowPrivilegeEscalation": False},
        "resources": {"requests": amounts, "limits": dict(amounts)},
        "env": [
            {"name": "HF_HOME", "value": f"{MODELS_FOLDER}/huggingface"},
            {"name": "BALANCER_CACHE", "value": f"{MODELS_FOLDER}/balancer"},
        ],
        "volumeMounts": [
            {"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True},
            {"name": "models", "mountPath": MODELS_FOLDER},
            *(
                {"name": f"volume-{number}", "mountPath": folder}
                for number, (_, folder) in enumerate(pods.volumes)
            ),
        ],
    }
    if pods.secrets:
        container["envFrom"] = [{"secretRef": {"name": secret}} for secret in pods.secrets]
    return container


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or 1.2 might not read as text: Kubernetes follows neither exactly."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    if "\n" in text:
        style: str | None = "|"
    else:
        is_plain = _PLAIN.fullmatch(text) and text.lower() not in _NOT_TEXT and ": " not in text
        style = None if is_plain else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def _yaml(document: dict[str, Any]) -> str:
    return str(yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=False, width=10_000))
