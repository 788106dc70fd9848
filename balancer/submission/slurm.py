"""A run as a batch script of Slurm that brings Ray up on all nodes of the allocation."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from balancer.errors import EXIT_SHORT, UsageError
from balancer.submission.fleet import Nodes
from balancer.submission.parcel import CONFIG_NAME, Parcel
from balancer.text.templates import templates

MARK = "END_OF_CONFIG"
"""Ends the config in the script. No line of indented JSON is like it."""

WORK = '"$work"/'
"""What stands for the folder of the config, in the command."""

_WORD = re.compile(r"[A-Za-z0-9][\w.,:+-]{0,100}", re.ASCII)
_MIB = {"Mi": 1, "Gi": 1024, "Ti": 1024**2}


def batch_script(
    name: str,
    parcel: Parcel,
    command: Sequence[str],
    nodes: Nodes,
    directives: Mapping[str, str | None],
    setup: Sequence[str] = (),
) -> str:
    """`command` is that of the run, with `CONFIG_NAME` as its config. `directives` are further options of
    sbatch, `setup` lines of shell of the user's own, run first."""
    for option, value in directives.items():
        if value is not None and not _WORD.fullmatch(value):
            raise UsageError(
                f"--{option} {value!r} is not a value for sbatch", hint="use letters, digits and .,:+-_"
            )
    for line in setup:
        if not line.isprintable():
            raise UsageError("--setup: a line has control characters", hint="give one --setup for each line")
    words = [f"{WORK}{CONFIG_NAME}" if word == CONFIG_NAME else shlex.quote(word) for word in command]
    template = templates("balancer.submission", autoescape=False).get_template("slurm.sh.j2")
    text = template.render(
        name=name,
        nodes=nodes,
        memory_mib=int(nodes.memory[:-2]) * _MIB[nodes.memory[-2:]],
        directives=[f"--{option}={value}" for option, value in directives.items() if value is not None],
        setup=list(setup),
        config=parcel.text,
        config_name=CONFIG_NAME,
        mark=MARK,
        command=" ".join(words),
        exit_short=EXIT_SHORT,
    )
    return f"{text}\n"
