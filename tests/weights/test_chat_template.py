"""A chat template is a program from somebody else: it ends in seconds, and takes no memory to speak of."""

from __future__ import annotations

import re

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from actors.weights.chat_template import MAX_CHARACTERS, render
from balancer.errors import WeightsError
from tests import small_process
from tests.tiny_models import CHAT_TEMPLATE

CHATS = [
    [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": f"Is this {word} ?"}]}]
    for word in ("burnt", "béchamel", "</s>")
]
VARIABLES = {"bos_token": "<bos>", "eos_token": "<eos>"}


def test_texts_are_those_of_transformers():
    expected, _ = render_jinja_template(
        conversations=CHATS, chat_template=CHAT_TEMPLATE, add_generation_prompt=True, **VARIABLES
    )
    assert render(CHAT_TEMPLATE, CHATS, VARIABLES, "m", "") == expected


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'x' * 3000000000 }}",
        "{{ ['x' * 1000000] * 1000000 }}",
        "{{ 'x' * 50000000 }}",
        "{{ (10 ** 9) ** (10 ** 9) }}",
        "{{ 'x' * " + str(MAX_CHARACTERS + 1) + " }}",
        "{% set ns = namespace(x='x') %}{% for a in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    ],
)
def test_a_template_without_end_is_ended_within_seconds_and_without_gigabytes(template):
    ended = small_process.call(render, template, CHATS[:1], VARIABLES, "m", "")
    assert re.match(r"m: its chat template cannot be used: .*more than", ended.message)
    assert ended.seconds < 60
    assert ended.child_bytes < 1_000_000_000


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('images are not taken') }}", "images are not taken"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ cycler.__init__.__globals__.os.system('touch /tmp/x') }}", "SecurityError"),
        ("{% for %}", "TemplateSyntaxError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ raise_exception('x\\n' * 100000) }}", "TemplateError: x x"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
    ],
)
def test_a_template_that_fails_is_one_line(template, reason):
    with pytest.raises(WeightsError, match=reason) as caught:
        render(template, CHATS[:1], VARIABLES, "m", "")
    assert "\n" not in caught.value.message
