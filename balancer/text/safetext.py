"""Make untrusted text safe to print: hide secrets, escape characters that control a terminal.

Secrets are user and password of a URL or near-URL (`s3:/key:pw@bucket`, `user:pw@host:6379`), the query of
a URL, which can hold signatures and tokens, and hub tokens.
"""

from __future__ import annotations

import re
import unicodedata

_SLASHES = r"[/\\]"
_USER = re.compile(rf"(:{_SLASHES}{{1,2}})[^\s/\\@\"'<>]+@")
_PASSWORD = re.compile(rf"(:{_SLASHES}+|(?<![^\s\"'=(\[{{,])//)[^\s\"<>@]*:[^\s\"<>]*@")
_BARE_PASSWORD = re.compile(rf"(?<![^\s\"'=(\[{{,/])([^\s\"'=(\[{{,/\\:@<>]+):(?!{_SLASHES})[^\s\"<>]*@")
_QUERY = re.compile(r"(:/[^\s?\"')<>]*)\?[^\s\"')<>]+")
_SIGNED = re.compile(
    r"(?i)(\bx-(?:amz|goog|ms)-[\w-]+|\b(?:\w*signature|sig|credential)"
    r"|(?<=[?&])(?:\w*(?:token|secret|passw|key)\w*|pwd|auth))(\s*[=:]\s*)[^\s&\"',;<>]+"
)
_ENCODED = re.compile(r"(?i)(%3a(?:%2f|/){1,2})[^\s\"'<>]+?(?:%40|@)")
_HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")

_JOINERS = "\u200c\u200d"
_HARMLESS = frozenset(("Zs", "Cn", "Co"))
"""Unicode categories that `str.isprintable` denies although they steer nothing: spaces such as U+3000, and
characters that are unassigned or for private use."""


def redacted(text: str) -> str:
    """The text with users, passwords, queries and signatures of URLs replaced by `***`."""
    text = _USER.sub(r"\1***@", _PASSWORD.sub(r"\1***@", text))
    text = _BARE_PASSWORD.sub(r"\1:***@", _ENCODED.sub(r"\1***@", text))
    text = _HUB_TOKEN.sub("hf_***", text)
    return _SIGNED.sub(r"\1\2***", _QUERY.sub(r"\1?***", text))


def has_credentials(text: str) -> bool:
    """Whether the text holds a URL or near-URL with a user, a password or a signature.

    Narrower than `redacted`: a folder may be called `10:30@site`.
    """
    before, colon, _ = text.partition(":/")
    if colon and not any(char.isspace() for char in before):
        text = "".join(text.split())  # the whole text is one URL, white space included
    return any(pattern.search(text) for pattern in (_USER, _PASSWORD)) or bool(
        _SIGNED.search(text) and _QUERY.search(text)
    )


def shortened(text: str, most: int = 200) -> str:
    """Cut the middle out of a long text."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2]}… ({len(text):,} characters) …{text[-(most // 4) :]}"


def printable(text: str) -> str:
    """The text as one line that cannot control a terminal. Escapes line ends, control characters (C0 and C1),
    direction marks, zero-width characters and unpaired surrogates, and nothing else."""
    if text.isprintable():
        return text
    return "".join(char if is_harmless(text, place) else _escaped(char) for place, char in enumerate(text))


def is_harmless(text: str, place: int) -> bool:
    """Whether the character there cannot control a terminal.

    Joiners have no width, but Persian, the scripts of India and emoji are not spelled without them: they stay
    after a letter, mark or symbol beyond ASCII.
    """
    char = text[place]
    if char in _JOINERS:
        before = text[max(0, place - 1) : place]
        return not before.isascii() and unicodedata.category(before)[0] in "LMS"
    return char.isprintable() or unicodedata.category(char) in _HARMLESS


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode()
