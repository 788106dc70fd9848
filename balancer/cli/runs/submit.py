"""`balancer submit`: run on a cluster elsewhere: as a Ray job, a RayJob of Kubernetes, or a job of Slurm."""

from __future__ import annotations

import shlex
import signal
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from balancer.cli import console
from balancer.config.dotted import SETTING_HELP
from balancer.errors import BalancerError, UnavailableError, UsageError
from balancer.text.commands import suggested

if TYPE_CHECKING:
    from actors.cluster.jobs import Jobs
    from balancer.submission.attempts import Attempt
    from balancer.submission.fleet import Nodes
    from balancer.submission.parcel import Limits, Parcel
    from balancer.submission.places import SharedFolders

EXIT_STOPPED = 128 + signal.SIGTERM
"""Of a job that was stopped; Ray keeps no exit code of it."""

OF_JOBS = ("shared", "address", "image_has_balancer", "again", "follow", "status", "stop", "logs")
OF_KUBERNETES = (
    "apply_", "image", "namespace", "token_secret", "secrets", "service_account", "model_cache", "volumes",
    "retries", "max_workers",
)  # fmt: skip
OF_SLURM = ("shared", "partition", "account", "time", "setup")
OF_NODES = ("workers", "cpus", "memory")
NAMES = {"apply_": "apply", "secrets": "secret", "volumes": "volume"}
"""Options whose parameter has another name."""


def _options(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decorated(command: Any) -> Any:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorated


_what = _options(
    click.option("--out", required=True, help="Run folder that all nodes see: a bucket, or a shared path."),
    click.option(
        "--shared", multiple=True, metavar="DIR", help="A folder that all nodes see under this path."
    ),
    click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help=SETTING_HELP),
    click.option("--limit", type=click.IntRange(min=1), help="Fill at most N slots, as a trial."),
    click.option("--allow-config-change", is_flag=True, help="Resume a run although its config changed."),
    click.option("--yes", is_flag=True, help="Let accepted images leave where fewer are wanted."),
    click.option("--dry-run", is_flag=True, help="Show what would be sent; ask nothing, change nothing."),
)
_job = _options(
    click.option("--address", help="Ray's dashboard, http://HEAD:8265.  [default: RAY_ADDRESS]"),
    click.option(
        "--image-has-balancer", is_flag=True, help="The nodes have balancer installed: send no code."
    ),
    click.option("--follow", is_flag=True, help="Show what the run prints, and end with its exit code."),
    click.option("--again", is_flag=True, help="Submit a finished run once more: its dataset has grown."),
    click.option("--status", is_flag=True, help="Show the jobs of this run folder."),
    click.option("--logs", is_flag=True, help="Print what its last job has printed; --follow goes on."),
    click.option("--stop", is_flag=True, help="Stop its job. What was accepted is kept."),
)
_nodes = _options(
    click.option("--workers", type=click.IntRange(1, 10_000), help="Nodes.  [default: by actors.generators]"),
    click.option("--cpus", type=click.IntRange(1, 1024), help="CPU cores of a node.  [default: 8]"),
    click.option("--memory", metavar="SIZE", help="Memory of a node, such as 32Gi.  [default: 32Gi]"),
)
_kubernetes = _options(
    click.option("--kubernetes", is_flag=True, help="Print a RayJob for KubeRay."),
    click.option("--apply", "apply_", is_flag=True, help="Hand it to `kubectl apply`."),
    click.option("--image", help="Image that has balancer (see Dockerfile)."),
    click.option("--namespace", help="Namespace.  [default: kubectl's]"),
    click.option(
        "--max-workers", type=click.IntRange(1, 10_000), help="Let the autoscaler add nodes up to N."
    ),
    click.option(
        "--model-cache", metavar="CLAIM", help="PersistentVolumeClaim to keep downloaded models on."
    ),
    click.option(
        "--volume", "volumes", multiple=True, metavar="CLAIM:DIR", help="Claim to mount in every pod."
    ),
    click.option(
        "--secret", "secrets", multiple=True, metavar="NAME", help="Secret whose keys are variables."
    ),
    click.option(
        "--token-secret", metavar="NAME", help="Secret with Ray's auth_token.  [default: a new one]"
    ),
    click.option("--service-account", metavar="NAME", help="Service account, for the role of the pods."),
    click.option(
        "--retries", type=click.IntRange(0, 100), help="Fresh clusters after a failure.  [default: 2]"
    ),
)
_slurm = _options(
    click.option("--slurm", is_flag=True, help="Print a script for sbatch."),
    click.option("--partition", help="Slurm partition."),
    click.option("--account", help="Slurm account."),
    click.option("--time", help="Slurm time limit, such as 12:00:00."),
    click.option(
        "--setup", multiple=True, metavar="LINE", help="Shell line to begin with: module load, activate."
    ),
)


@click.command("submit")
@click.argument("config", type=click.Path(), required=False)
@_what
@_job
@_nodes
@_kubernetes
@_slurm
@click.pass_context
def command(ctx: click.Context, /, config: str | None, **options: Any) -> None:
    """Run CONFIG on a cluster: through Ray's job API, or as a RayJob of Kubernetes or a job of Slurm.

    The run folder must be one that the nodes see. The config travels with the small files that it names. A
    run that is under way or finished is not submitted twice; one that was stopped or failed goes on.
    Credentials are never sent: nodes find their own. Ctrl-C ends --follow, not the run.
    """
    asked = Asked(ctx, config, options)
    _refuse_misplaced(options)
    if options["kubernetes"]:
        _submit_to_kubernetes(asked)
    elif options["slurm"]:
        _submit_to_slurm(asked)
    elif options["status"] or options["stop"] or options["logs"]:
        _look_after(asked)
    else:
        _submit_job(asked)


@dataclass(frozen=True, slots=True)
class Asked:
    """The command line."""

    ctx: click.Context
    config: str | None
    options: dict[str, Any]

    @property
    def shared(self) -> SharedFolders:
        from balancer.submission.places import shared_folders

        mounted = [volume.partition(":")[2] for volume in self.options["volumes"]]
        return shared_folders([*self.options["shared"], *mounted])

    @property
    def out(self) -> str:
        from balancer.submission.places import run_place

        return run_place(self.options["out"], self.shared)

    def packed(self, limits: Limits, folder: str = "") -> Parcel:
        from balancer.config.load import load_config
        from balancer.submission.parcel import pack

        if self.config is None:
            raise UsageError(
                "which config? Name it before --out", hint="--status, --logs and --stop need none"
            )
        return pack(load_config(self.config, self.options["overrides"]), self.shared, limits, folder)

    def run_command(self, config: str) -> list[str]:
        """The command on the cluster, for a shell."""
        words = ["python", "-m", "balancer", "run", config, "--out", self.out]
        if self.options["limit"] is not None:
            words += ["--limit", str(self.options["limit"])]
        flags = ("allow_config_change", "yes")
        return words + [f"--{name.replace('_', '-')}" for name in flags if self.options[name]]

    def again(self, *words: str) -> str:
        """`balancer submit` for the same run folder, to suggest."""
        shared = [word for folder in self.options["shared"] for word in ("--shared", folder)]
        address = ["--address", self.options["address"]] if self.options["address"] else []
        return suggested("submit", "--out", self.options["out"], *shared, *address, *words)


def _refuse_misplaced(options: dict[str, Any]) -> None:
    """UsageError for options of one way given with another, which would have no effect."""
    ways = {"kubernetes": (*OF_KUBERNETES, *OF_NODES), "slurm": (*OF_SLURM, *OF_NODES)}
    chosen = [way for way in ways if options[way]]
    if len(chosen) > 1:
        raise UsageError("--kubernetes and --slurm are two ways; choose one")
    allowed = ways[chosen[0]] if chosen else OF_JOBS
    for name in (*OF_JOBS, *OF_KUBERNETES, *OF_SLURM, *OF_NODES):
        if name not in allowed and options[name] not in (None, False, ()):
            shown = NAMES.get(name, name).replace("_", "-")
            belongs = [f"--{way}" for way in ways if name in ways[way] and name not in OF_JOBS]
            where = f"needs {' or '.join(belongs)}" if belongs else f"has no effect with --{chosen[0]}"
            raise UsageError(f"--{shown} {where}")
    if sum(bool(options[name]) for name in ("status", "stop", "logs")) > 1:
        raise UsageError("--status, --stop and --logs: choose one")


def _submit_job(asked: Asked) -> None:
    from actors.cluster.jobs import Jobs, job_server, runtime_env
    from balancer.submission.attempts import decide, run_id
    from balancer.submission.parcel import CONFIG_NAME, JOB_API
    from balancer.submission.pins import pinned

    out, parcel = asked.out, asked.packed(JOB_API)
    entrypoint = shlex.join(asked.run_command(CONFIG_NAME))
    with_code = not asked.options["image_has_balancer"]
    packages = pinned() if with_code else []
    if asked.options["dry_run"]:
        console.print_json(
            {
                "submission_id": run_id(out, parcel.fingerprint()),
                "address": asked.options["address"],
                "entrypoint": entrypoint,
                "config": parcel.document,
                "files": {name: len(data) for name, data in parcel.files.items()},
                "code": with_code,
                "pip": packages,
            }
        )
        return
    address = job_server(asked.options["address"])
    jobs = Jobs(address, allow_open=parcel.config.actors.allow_open_cluster)
    decision = decide(jobs.attempts(), out, parcel.fingerprint(), again=asked.options["again"])
    if decision.kind == "busy":
        raise UsageError(
            f"{decision.id} is at work in {out} with another config",
            hint=f"wait until it has ended, or stop it: {asked.again('--stop')}",
        )
    if decision.kind == "finished":
        console.say(f"{decision.id} has finished this run; --again submits it once more")
        return
    submitted = False
    if decision.kind == "submit":
        with tempfile.TemporaryDirectory(prefix="balancer-submit-") as folder:
            _write(parcel, Path(folder), with_code=with_code)
            submitted = jobs.submit(decision.id, entrypoint, runtime_env(Path(folder), packages))
    console.say(f"{decision.id} {'submitted' if submitted else 'is under way already'}: {out}")
    if asked.options["follow"]:
        _follow(asked, jobs, decision.id)
    else:
        console.note(f"look at it with {asked.again('--logs', '--follow')}")


def _write(parcel: Parcel, folder: Path, *, with_code: bool) -> None:
    """The working folder of the job, in a folder that this user alone can enter."""
    from balancer.submission.parcel import CONFIG_NAME
    from balancer.submission.pins import copy_code

    (folder / CONFIG_NAME).write_text(parcel.text)
    for name, data in parcel.files.items():
        (folder / name).write_bytes(data)
    if with_code:
        copy_code(folder)


def _look_after(asked: Asked) -> None:
    """`--status`, `--logs` and `--stop`."""
    from actors.cluster.jobs import Jobs, job_server
    from balancer.submission.attempts import of_folder

    if asked.config is not None:
        raise UsageError("--status, --logs and --stop go by the run folder; leave the config out")
    out = asked.out
    jobs = Jobs(job_server(asked.options["address"]), allow_open=_allows_open(asked))
    attempts = of_folder(jobs.attempts(), out)
    if not attempts:
        raise UsageError(f"no job of {jobs.address} works on {out}")
    last = attempts[-1]
    if asked.options["status"]:
        rows = [[attempt.id, attempt.status.lower(), attempt.exit_code] for attempt in attempts]
        console.table(f"jobs of {out}", ("job", "state", "exit code"), rows, one_line=True)
    elif asked.options["stop"]:
        was_running = last.is_active and jobs.stop(last.id)
        console.say(f"{last.id} {'was told to stop' if was_running else 'has ended before'}")
    elif asked.options["follow"]:
        _follow(asked, jobs, last.id)
    else:
        for line in jobs.logs(last.id).splitlines():
            console.say(line)


def _allows_open(asked: Asked) -> bool:
    return any(
        word.replace(" ", "") == "actors.allow_open_cluster=true" for word in asked.options["overrides"]
    )


def _follow(asked: Asked, jobs: Jobs, id: str) -> NoReturn:
    try:
        ended = jobs.follow(id, console.say)
    except KeyboardInterrupt:
        console.note(
            f"no longer following; the run goes on. Look again with {asked.again('--logs', '--follow')}"
        )
        raise
    asked.ctx.exit(_exit_code(ended))


def _exit_code(ended: Attempt) -> int:
    from balancer.submission.attempts import STOPPED, SUCCEEDED

    if ended.status == SUCCEEDED:
        return 0
    if ended.exit_code:
        return ended.exit_code if ended.exit_code > 0 else 128 - ended.exit_code
    if ended.status == STOPPED:
        console.note(f"{ended.id} was stopped; submitted again, it goes on")
        return EXIT_STOPPED
    lines = ended.message.strip().splitlines() or [ended.status]
    raise BalancerError(
        f"{ended.id} did not run: {lines[0]}",
        hint="the dashboard has its logs; for nodes without pip, use --image-has-balancer",
    )


def _nodes_of(asked: Asked, parcel: Parcel) -> Nodes:
    from balancer.submission.fleet import nodes_for

    options = asked.options
    return nodes_for(
        parcel.config,
        count=options["workers"],
        most=options["max_workers"],
        cpus=options["cpus"] or 8,
        memory=options["memory"] or "32Gi",
    )


def _submit_to_kubernetes(asked: Asked) -> None:
    from importlib import metadata

    from balancer.submission.attempts import run_id
    from balancer.submission.kubernetes import CONFIG_FOLDER, Pods, check_pods, manifest
    from balancer.submission.parcel import CONFIG_MAP, CONFIG_NAME

    options = asked.options
    if options["image"] is None:
        raise UsageError(
            "--kubernetes needs --image, one that has balancer", hint="the project's Dockerfile builds one"
        )
    pods = Pods(
        image=options["image"],
        namespace=options["namespace"],
        token_secret=options["token_secret"],
        secrets=options["secrets"],
        service_account=options["service_account"],
        model_cache=options["model_cache"],
        volumes=tuple(volume.partition(":")[::2] for volume in options["volumes"]),
        retries=2 if options["retries"] is None else options["retries"],
    )
    check_pods(pods)
    out, parcel = asked.out, asked.packed(CONFIG_MAP, CONFIG_FOLDER)
    text = manifest(
        run_id(out, parcel.fingerprint()),
        parcel,
        asked.run_command(f"{CONFIG_FOLDER}/{CONFIG_NAME}"),
        pods,
        _nodes_of(asked, parcel),
        metadata.version("ray"),
    )
    if options["apply_"] and not options["dry_run"]:
        _kubectl(asked.ctx, text)
    else:
        console.emit(text.encode())


def _kubectl(ctx: click.Context, text: str) -> None:
    try:
        done = subprocess.run(["kubectl", "apply", "-f", "-"], input=text, text=True, check=False)
    except FileNotFoundError as error:
        raise UnavailableError(
            "--apply needs kubectl, which is not here", hint="leave --apply out"
        ) from error
    if done.returncode:
        raise UnavailableError(f"kubectl ended with {done.returncode}", hint="its message is above")


def _submit_to_slurm(asked: Asked) -> None:
    from balancer.submission.attempts import run_id
    from balancer.submission.parcel import CONFIG_NAME, NOTHING
    from balancer.submission.slurm import batch_script

    options = asked.options
    out, parcel = asked.out, asked.packed(NOTHING)
    directives = {name: options[name] for name in ("partition", "account", "time")}
    text = batch_script(
        run_id(out, parcel.fingerprint()),
        parcel,
        asked.run_command(CONFIG_NAME),
        _nodes_of(asked, parcel),
        directives,
        options["setup"],
    )
    console.emit(text.encode())
