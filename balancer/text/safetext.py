"""Text from outside, made safe to show: no secret of an address, no character that steers a terminal.

Secrets are the user and password of an address, or of what is almost one (`s3:/key:pw@bucket`,
`user:pw@host:6379`), the query of an address, where signatures and tokens stand, and tokens of the hub.
"""

from __future__ import annotations

import re

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


def redacted(text: str) -> str:
    """A text without the users, passwords, queries and signatures of the addresses in it."""
    text = _USER.sub(r"\1***@", _PASSWORD.sub(r"\1***@", text))
    text = _BARE_PASSWORD.sub(r"\1:***@", _ENCODED.sub(r"\1***@", text))
    text = _HUB_TOKEN.sub("hf_***", text)
    return _SIGNED.sub(r"\1\2***", _QUERY.sub(r"\1?***", text))


def has_credentials(text: str) -> bool:
    """Whether a text holds an address, or almost one, with a user, a password or a signature.

    Narrower than `redacted`: `10:30@site` may well be the name of a folder.
    """
    before, colon, _ = text.partition(":/")
    if colon and not any(mark.isspace() for mark in before):
        text = "".join(text.split())  # an address as a whole, so that white space belongs to it
    return any(pattern.search(text) for pattern in (_USER, _PASSWORD)) or bool(
        _SIGNED.search(text) and _QUERY.search(text)
    )


def shortened(text: str, most: int = 200) -> str:
    """A long text without its middle."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2]}… ({len(text):,} characters) …{text[-(most // 4) :]}"


def printable(text: str) -> str:
    """A text as one line that cannot steer a terminal: controls (C0 and C1), direction marks, characters of
    no width and unpaired surrogates are escaped, and so are line ends."""
    return "".join(mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in text)
