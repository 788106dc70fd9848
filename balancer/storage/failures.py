"""What it means when a request to an object store fails, in one line that holds no secret.

The library's errors are of a few classes only; what a server said stands in their text, and with it the
whole URL of the request and the body of the answer. Neither is ever shown: from the text, only the status,
the error code and the message that S3, GCS and Azure put into the body are taken.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from balancer.text.safetext import redacted

_STATUS = re.compile(r"status code: (\d{3}) ?([^:\n]*)")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_MESSAGE = re.compile(r"<Message>([^<]{1,300})")
_CONNECTION = re.compile(r"HttpError \{\s*kind: (\w+)")
_REASON = re.compile(r'(?:message|error): "([^"]{1,200})"')

_PASSING = {408, 409, 425, 429}
"""Of the answers that blame the request, those that another time may be others; so may all from 500 on."""

_TRIES_OF_BAD_ANSWERS = 3
"""Each may take as much time and memory as one answer is allowed."""

_LONGEST_TEXT = 100_000
"""A body may be as long as a server likes; what is looked for stands at its beginning."""

_WORDS = {
    "Timeout": "no answer in time",
    "Interrupted": "the connection broke",
    "Request": "the connection broke",
    "Decode": "the answer was cut off",
    "Connect": "no connection",
}

_CREDENTIALS = "check the credentials of every machine that takes part, and what they may do in the bucket"
_HINTS = {
    "NoSuchBucket": "make the bucket first, or correct its name",
    "ContainerNotFound": "make the container first, or correct its name",
    "RequestTimeTooSkewed": "set the clock of this machine",
    "ExpiredToken": "renew the credentials, then run the same command again",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """`passing` says whether the same request may succeed a little later, `reached` whether there was any
    server to say something."""

    cause: str
    passing: bool
    hint: str = ""
    missing: bool = False
    reached: bool = True
    tries: int | None = None
    """How often the request is made at most; None as long as patience lasts."""


class BadAnswerError(Exception):
    """An answer that is no honest store's: endless, too large, or not what was asked for."""

    def __init__(self, cause: str, *, passing: bool = False) -> None:
        super().__init__(cause)
        self.passing = passing


class Conflict(Exception):
    """A create that the store refused although there is nothing of that name: another is under way."""


def explain_failure(error: Exception) -> Failure:
    """What an error of the library means."""
    if isinstance(error, Conflict):
        return Failure("409 Conflict (another request for the same name is under way)", passing=True)
    if isinstance(error, BadAnswerError):
        return Failure(f"the answer is refused: {error}", error.passing, tries=_TRIES_OF_BAD_ANSWERS)
    text = str(error)[:_LONGEST_TEXT]
    if status := _STATUS.search(text):
        return _answered(int(status[1]), status[2].strip(), text)
    if "redirect" in text:
        return Failure("it is in another region", False, "set AWS_REGION to the region of the bucket")
    if connection := _CONNECTION.search(text):
        return _unanswered(connection[1], text)
    cause = redacted(_plain(text)) or type(error).__name__
    return Failure(cause, passing=type(error).__name__ == "GenericError")


def _answered(status: int, phrase: str, text: str) -> Failure:
    code = next(iter(_CODE.findall(text)), "")
    message = next(iter(_MESSAGE.findall(text)), "")
    detail = ": ".join(filter(None, (code, redacted(" ".join(message.split())))))
    cause = f"{status} {phrase}".strip() + (f" ({detail})" if detail else "")
    hint = _HINTS.get(code) or (_CREDENTIALS if status in (401, 403) else "")
    passing = status in _PASSING or (status >= 500 and status != 501) or code == "RequestTimeout"
    return Failure(cause, passing, hint, missing=status == 404 and code not in _HINTS)


def _unanswered(kind: str, text: str) -> Failure:
    if "BadScheme" in text:
        return Failure("plain http is not allowed", False, "use https, or allow it with AWS_ALLOW_HTTP=true")
    reason = next(iter(_REASON.findall(text)), "")
    words = _WORDS.get(kind, "the request failed")
    cause = f"{words}: {redacted(reason).lower()}" if reason else words
    return Failure(cause, passing=True, reached=kind != "Connect")


def _plain(text: str) -> str:
    """What the library says before it begins to quote its own data."""
    return " ".join(text.partition("\n\nDebug source:")[0].split())[:300]
