from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from balancer.text.commands import suggested


def test_a_suggested_command_can_be_pasted_whatever_the_path():
    path = Path("it's/my f.yaml")
    line = suggested("plan", path, "--set", "classes.a.prompts=[an a]")
    words = shlex.split(line.strip("`"))
    assert words == ["balancer", "plan", str(path), "--set", "classes.a.prompts=[an a]"]
    assert suggested("fsck", "RUN") == "`balancer fsck RUN`"


@pytest.mark.parametrize("package", ["balancer", "actors"])
def test_no_message_builds_a_command_line_by_hand(project, package):
    by_hand = re.compile(r"`balancer [^`\n]*\{")
    for path in (project / package).rglob("*.py"):
        assert not by_hand.search(path.read_text()), path
