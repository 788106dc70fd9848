"""No secret of an address is shown, and no character that steers a terminal."""

from __future__ import annotations

import json
import re
import traceback
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer import errors
from balancer.cli import console
from balancer.text.safetext import has_credentials, printable, redacted

SECRET = "Pa55w0rd"

ADDRESSES = [
    f"file://u:{SECRET}@h/x",
    f"file:///u:{SECRET}@h/x",
    f"s3:/k:{SECRET}@b/x",
    f"s3://k:{SECRET}@b/x",
    f"s3://k:ab/{SECRET}+c@b/x",
    f"s3://k:a@{SECRET}@b/x",
    f"s3://{SECRET}@b/x",
    f"s3:\\\\k:{SECRET}@b",
    f"ray://u:{SECRET}@h:10001",
    f"git+https://u:{SECRET}@h/x",
    f"//u:{SECRET}@h/x",
    f"/home/me/s3:/k:{SECRET}@b/x",
    f"https://h/x?X-Amz-Signature={SECRET}",
    f"https://h/x?a=b&token={SECRET}",
    f"az://c/x?sv=1&sig={SECRET}",
]
NO_SECRETS = [
    "text_cfg.hf_model_name and hf_tokenizer_name",
    "s3://bucket/me@site/run",
    "file:///data/me@home",
    "/data/10:30/run",
    "a sign that says http://example.org: mail me@example.org",
    "configs/demo.yaml:3: dataset.path: does not exist",
    "is it s3://bucket/run?",
    "class = 'burnt' and score >= 0.8",
    '{"path": "file:///a", "metadata": "me@site.csv"}',
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_with_a_secret_is_known_and_loses_it_in_any_sentence(address):
    assert has_credentials(address)
    assert has_credentials(f"dataset.path={address}")
    for sentence in (address, f"{address}: not there", f"no {address!r}, (see {address})"):
        assert SECRET not in redacted(sentence)


@pytest.mark.parametrize("text", NO_SECRETS)
def test_text_without_a_secret_stays_as_it_is(text):
    assert not has_credentials(text)
    assert redacted(text) == text


@pytest.mark.parametrize(
    "text",
    [
        f"u:{SECRET}@host:6379",
        f"s3:k:{SECRET}@b/x",
        f"https%3A%2F%2Fu%3A{SECRET}%40h",
        f"https%3a//u:{SECRET}@h",
        f"SharedAccessSignature={SECRET}",
        "hf_" + SECRET * 4,
    ],
)
def test_what_may_be_a_folder_is_no_address_but_its_secret_is_not_shown_either(text):
    assert not has_credentials(text)
    assert SECRET not in redacted(f"Ray at {text} does not answer")


def test_white_space_in_a_password_does_not_hide_it():
    assert has_credentials(f"file://u:a {SECRET}@h/x")
    assert has_credentials(f"dataset.path=file://u:a\n{SECRET}@h/x")


user_text = st.text(
    st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="/\\@\"'<>:"), max_size=9
)


@given(
    user_text, user_text, st.sampled_from(["s3", "file", "gs", "https", "ray"]), st.sampled_from(["/", "//"])
)
def test_wherever_a_password_stands_in_an_address_it_is_found(user, before, scheme, slashes):
    address = f"{scheme}:{slashes}{user}:{before}{SECRET}@host/x"
    assert has_credentials(address)
    assert SECRET not in redacted(f"{address} is not there")


@pytest.mark.parametrize("kind", [errors.BalancerError, errors.UsageError, errors.StorageError])
def test_no_error_of_the_library_shows_a_secret_not_even_in_a_traceback(kind):
    error = kind(f"no folder {ADDRESSES[0]}", hint=f"is it {ADDRESSES[1]}?")
    assert SECRET not in "".join(traceback.format_exception(error)) + error.message + error.hint


def test_problems_of_a_config_show_no_secret():
    error = errors.ConfigError([f"a.yaml:1: dataset.path: {ADDRESSES[0]}"])
    assert SECRET not in repr(error) + str(error.problems)


# ---- characters ------------------------------------------------------------------------------------

STEERING = [
    chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) in ("Cc", "Cf", "Cs", "Zl", "Zp")
]


def test_controls_direction_marks_and_characters_of_no_width_are_escaped():
    assert {"\x1b", "\x9b", "\n", "\u202e", "\u2066", "\u200f", "\u200b", "\ufeff"} <= set(STEERING)
    assert not [mark for mark in STEERING if printable(f"a{mark}b") == f"a{mark}b"]
    assert printable("".join(STEERING)).isprintable()


SPELLINGS = (
    "日本\u3000語",
    "caf\u00e9\u00a0noir",
    "نمی\u200cشود",  # Persian
    "ශ්\u200dරී",  # Sinhala
    "👩🏽\u200d🍳",
    "👨\u200d👩\u200d👧",
    "\u2764\ufe0f\u200d🔥",
)


@pytest.mark.parametrize("name", SPELLINGS)
def test_joiners_and_wide_spaces_of_a_name_are_shown_as_they_are_written(name):
    assert printable(name) == name


@pytest.mark.parametrize("name", ["a\u200db", "\u200dab", "\u3000\u200cx", "語\u202e", "\u200d\u200d"])
def test_a_joiner_that_joins_nothing_is_escaped(name):
    assert printable(name) != name


PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
"""Two halves that JSON reads as one character."""


@given(st.text(st.characters(), max_size=20).filter(lambda text: not PAIR.search(text)))
def test_json_keeps_every_text_and_has_no_character_that_steers(text):
    written = console.json_text({text: [text]})
    assert json.loads(written) == {text: [text]}
    assert written.replace("\n", "").isprintable()
