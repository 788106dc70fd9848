"""The versions that a run needs on the nodes: those installed here."""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from balancer.errors import UnavailableError

PACKAGE = "balancer"
CODE = ("balancer", "actors")
"""The packages of this distribution. They travel as files: a package of that name on an index would be
somebody else's."""

NOT_SENT = frozenset({PACKAGE, "ray"})
"""The cluster's own Ray runs the job; another version could not join it."""

# torch itself pins these, and which depends on the nodes' platform.
_PINNED_BY_TORCH = re.compile(r"nvidia-.*|cuda-.*|triton")
_NOT_FOR_RUNS = frozenset({"docs", "test"})

IMAGE_HINT = "use nodes that have balancer installed, and pass --image-has-balancer"


def pinned() -> list[str]:
    """`name==version` of everything that balancer needs, as installed here, and of its optional packages that
    are installed. UnavailableError if it is not installed as a distribution."""
    try:
        wanted = [*_required(PACKAGE, _extras())]
    except metadata.PackageNotFoundError as error:
        problem = "balancer is not installed as a package here, so its versions are not known"
        raise UnavailableError(problem, hint=IMAGE_HINT) from error
    versions: dict[str, str] = {}
    while wanted:
        name = wanted.pop()
        if name in versions or name in NOT_SENT or _PINNED_BY_TORCH.fullmatch(name):
            continue
        try:
            version = metadata.version(name)
            wanted += _required(name, [""])
        except metadata.PackageNotFoundError:  # an optional package, or one of another platform
            continue
        versions[name] = version.partition("+")[0]  # `+cpu` is a build of one index
    return [f"{name}=={versions[name]}" for name in sorted(versions)]


def copy_code(folder: Path) -> None:
    """The packages of this distribution and its metadata into `folder`, to be imported from there."""
    for name in CODE:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.submodule_search_locations
        source = spec.submodule_search_locations[0]
        shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    distribution = metadata.distribution(PACKAGE)
    about = folder / f"{PACKAGE}-{distribution.version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(distribution.read_text("METADATA") or "")


def _extras() -> list[str]:
    declared = metadata.metadata(PACKAGE).get_all("Provides-Extra") or []
    return ["", *(extra for extra in declared if extra not in _NOT_FOR_RUNS)]


def _required(distribution: str, extras: list[str]) -> Iterator[str]:
    """Names of the requirements whose markers hold here, with any of these extras."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    for text in metadata.requires(distribution) or []:
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
            yield canonicalize_name(requirement.name)
