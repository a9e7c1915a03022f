"""What can go wrong with a model endpoint, told by its class and hardly ever in the endpoint's own words.

Bodies of failed answers can echo keys and prompts: only known words in their machine-readable members are
looked at, to choose one of our sentences. A 400 or 422 is the exception: nobody can mend a request without
knowing what the endpoint objected to, so its sentence is passed on, short and masked (`_objection`).
"""

from __future__ import annotations

import errno
import json
import re
import socket
import ssl
from collections.abc import Mapping, Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

from mux.errors import UpstreamError
from mux.telemetry import redact_secrets

__all__ = [
    "broken",
    "error_of",
    "raise_reported",
    "rejected",
    "reported",
    "retry_after",
    "scrub",
    "scrub_all",
    "unreachable",
]


def broken(message: str, *, retryable: bool = True) -> UpstreamError:
    """The error for bytes that are not the protocol."""
    return UpstreamError("upstream_protocol", message, retryable=retryable)


def scrub(text: str) -> str:
    """The text with surrogate pairs joined and lone surrogates as U+FFFD, so that it can be encoded."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def scrub_all(value: Any) -> Any:
    """:func:`scrub` on every string of a JSON value."""
    if isinstance(value, str):
        return value if value.isascii() else scrub(value)
    if isinstance(value, dict):
        return {scrub_all(k): scrub_all(v) for k, v in value.items()}
    if isinstance(value, list):
        return [scrub_all(v) for v in value]
    return value


def error_of(data: bytes) -> None:
    """Raise ``upstream_error`` if this is JSON that reports an error; its own words are not passed on."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, dict):
            raise_reported(item)


def raise_reported(value: dict[str, Any]) -> None:
    """Raise if a JSON object is an error report, in one of the shapes that endpoints and gateways use."""
    if (found := _report(value)) is not None:
        raise reported(found)


def _report(value: dict[str, Any]) -> dict[str, Any] | None:
    """The object with the machine-readable words of an error, or ``None`` where nothing is reported."""
    error = value.get("error")
    if error:
        return error if isinstance(error, dict) else value
    if "error" in (value.get("type"), value.get("object"), value.get("status")):
        return value
    errors = value.get("errors")
    if isinstance(errors, list) and errors:
        return errors[0] if isinstance(errors[0], dict) else value
    if isinstance(inner := value.get("base_resp"), dict) and inner.get("status_code"):  # MiniMax
        return {"code": inner["status_code"]}
    if "choices" in value or "output" in value or "delta" in value:
        return None
    # FastAPI; Baidu, FastChat; proxies and API gateways: no answer has these members
    says_so = value.get("success") is False or value.get("detail") or value.get("error_code")
    message = value.get("message") or value.get("msg")
    if says_so or (isinstance(message, str) and (len(value) == 1 or _bad_code(value.get("code")))):
        return {"code": value.get("error_code"), **value} if value.get("error_code") else value
    return None


def _bad_code(code: Any) -> bool:
    return bool(code) and str(code).lower() not in ("200", "ok", "success")


_FINAL_WORDS = (
    "invalid",
    "not_found",
    "notfound",
    "context_length",
    "quota",
    "billing",
    "permission",
    "auth",
)
_FINAL_STATUS = frozenset({400, 401, 402, 403, 404, 405, 413, 415, 422})


def reported(error: dict[str, Any]) -> UpstreamError:
    """The error for one that an endpoint reported inside a 200 answer. Told by its class, never its words."""
    words = " ".join(str(error.get(k, "")) for k in ("type", "code", "status")).lower()
    status = next((v for k in ("code", "status", "status_code") if isinstance(v := error.get(k), int)), None)
    final = status in _FINAL_STATUS or any(w in words for w in _FINAL_WORDS)
    if "rate" in words or status == 429:
        what = "The endpoint reported a rate limit inside its answer."
        final = "quota" in words
    elif "overload" in words or status == 529:
        what = "The endpoint reported that it is overloaded."
    elif "context_length" in words:
        what = "The endpoint reported that the conversation is longer than the model's context."
    elif status is not None:
        what = f"The endpoint reported an error (code {status}) inside its answer."
    else:
        what = "The endpoint reported an error inside its answer."
    extra = {"upstream_status": status} if status is not None and 400 <= status < 600 else None
    return UpstreamError("upstream_error", what, retryable=not final, extra=extra)


# --- answers that are no stream -----------------------------------------------------------------------------

_CLASSES: dict[str, str] = {
    "context_length_exceeded": "the conversation is longer than the model's context",
    "context_window_exceeded": "the conversation is longer than the model's context",
    "exceed_context_size_error": "the conversation is longer than the model's context",  # llama.cpp
    "string_above_max_length": "a message is longer than it takes",
    "insufficient_quota": "the account's quota is used up",
    "billing_hard_limit_reached": "the account's spending limit is reached",
    "billing_not_active": "the account has no active billing",
    "invalid_api_key": "the API key is not valid",
    "model_not_found": "it has no such model, or the key may not use it",
    "unsupported_parameter": "it does not take one of the parameters",
    "unsupported_value": "it does not take the value of one of the parameters",
    "content_filter": "its content filter refused the prompt",
    "content_policy_violation": "its content filter refused the prompt",
}


def rejected(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    now: float,
    key_env: str | None = None,
    unset: Sequence[str] = (),
) -> UpstreamError:
    """The error for an answer with a status other than 2xx.

    Args:
        headers: with lower-case names; only those that say when to try again are read.
        body: its beginning; only well-known codes in it are looked at.
        now: the time, in seconds since the epoch, for dates in ``Retry-After``.
        key_env: the variable that holds the key, to name it where the key is refused.
        unset: variables that should hold a key or a header, and are not set.
    """
    word = _class_of(body)
    because = f": {_CLASSES[word]}" if word else ""
    extra = {"upstream_status": status, **({"reason": word} if word else {})}
    wait = retry_after(headers, now)
    if status == 429:
        used_up = word in ("insufficient_quota", "billing_hard_limit_reached")
        text = f"The endpoint limits requests (429){because}."
        if wait is not None:
            text += f" It asks to wait {wait:.0f} s."
        return UpstreamError("rate_limited", text, retryable=not used_up, retry_after=wait, extra=extra)
    if status >= 500 or status in (408, 409, 425):
        text = f"The endpoint failed (HTTP {status})."
        return UpstreamError("upstream_error", text, retryable=True, retry_after=wait, extra=extra)
    if 300 <= status < 400:
        text = (
            f"The endpoint answered with a redirect (HTTP {status}). It is not followed, since it would carry"
            " the key elsewhere: set base_url to the final address."
        )
    elif status == 401:
        key = f"check the key in {key_env}" if key_env else "set api_key_env to the variable with its key"
        if unset:
            key = f"set {' and '.join(unset)} in the environment of this server"
        text = f"The endpoint refused the API key (HTTP 401): {key}."
    elif status == 403:
        text = f"The endpoint does not allow this with this key (HTTP 403){because}."
    elif status == 404:
        text = "The endpoint knows no such model or path (HTTP 404): check the model's name and base_url."
    elif status == 413:
        text = "The request is too large for the endpoint (HTTP 413)."
    else:
        text = f"The endpoint rejected the request (HTTP {status}){because}."
        if status in (400, 422) and (said := _objection(body)):
            text += f" It says: {said}"
    return UpstreamError("upstream_rejected", text, retryable=False, extra=extra)


_OBJECTION_CHARS = 300
# what is or may be a key: with a key's prefix, or a long word with digits in it
_KEYLIKE = re.compile(
    r"(?i)(?<![\w-])(?:sk|pk|rk|key|api|token|secret|bearer|canary)[-_]\S{4,200}"
    r"|(?<![\w-])(?=[\w+/=-]{0,200}\d)[\w+/=-]{24,400}|://[^\s/@]{1,200}@|\bbearer\s+\S{1,400}"
)


def _objection(body: bytes) -> str | None:
    """What an endpoint objects to, in its own words: one line, short, with all that may be a key masked."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    found = _sentence(value)
    if not found:
        return None
    line = " ".join("".join(c if c.isprintable() else " " for c in scrub(found[:4000])).split())
    line = _KEYLIKE.sub("[masked]", redact_secrets(line))
    if " " not in line:
        return None  # a word is no sentence: it may be anything
    return line if len(line) <= _OBJECTION_CHARS else line[: _OBJECTION_CHARS - 1].rstrip() + "…"


def _sentence(value: Any, depth: int = 4) -> str | None:
    """The sentence in an error report, wherever it stands; of FastAPI's list also the place."""
    if isinstance(value, str) or depth == 0:
        return value if isinstance(value, str) else None
    if isinstance(value, list):
        said = [text for item in value[:5] if (text := _sentence(item, depth - 1))]
        return "; ".join(said) or None
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("loc"), list) and isinstance(value.get("msg"), str):
        return f"{'.'.join(map(str, value['loc']))}: {value['msg']}"
    names = ("error", "message", "detail", "msg", "errors", "error_message", "title")
    return next((text for n in names if (text := _sentence(value.get(n), depth - 1))), None)


def _class_of(body: bytes) -> str | None:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    value = value[0] if isinstance(value, list) and value else value
    error = value.get("error") if isinstance(value, dict) else None
    if not isinstance(error, dict):
        return None
    return next((v for k in ("code", "type") if isinstance(v := error.get(k), str) and v in _CLASSES), None)


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds to wait, from ``retry-after-ms`` or ``Retry-After`` (seconds or a date; RFC 9110, 10.2.3)."""
    try:
        return _sane(float(headers["retry-after-ms"]) / 1000)
    except (KeyError, ValueError):
        pass  # absent or no number: the usual header follows
    text = headers.get("retry-after", "")
    try:
        return _sane(float(text))
    except ValueError:
        pass  # a date, perhaps
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return _sane(max(when.timestamp() - now, 0.0))


def _sane(seconds: float) -> float | None:
    return min(seconds, 1e7) if 0 <= seconds < float("inf") else None


def unreachable(error: BaseException, place: str) -> UpstreamError:
    """The error for a request that got no answer, told by its cause rather than by a library's class."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes and len(causes) < 16:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__ or getattr(cause, "os_error", None)
    names = " ".join(type(c).__name__ for c in causes)
    numbers = {c.errno for c in causes if isinstance(c, OSError)}
    retryable = True
    if any(isinstance(c, ssl.SSLCertVerificationError) for c in causes) or "Certificate" in names:
        reason, retryable = f"the TLS certificate of {place} is not valid", False
    elif any(isinstance(c, ssl.SSLError) for c in causes) or "SSL" in names:
        reason, retryable = f"{place} does not speak TLS as expected: check http or https in base_url", False
    elif any(isinstance(c, socket.gaierror) for c in causes) or "DNS" in names:
        reason = f"the host name of {place} can't be resolved"
    elif any(isinstance(c, ConnectionRefusedError) for c in causes) or errno.ECONNREFUSED in numbers:
        reason = f"{place} refused the connection (is it running?)"
    elif "Disconnected" in names or any(isinstance(c, ConnectionResetError) for c in causes):
        reason = f"{place} closed the connection without an answer"
    elif "Timeout" in names and "ConnectTimeout" not in names:
        reason = f"{place} did not answer in time"
    else:
        reason = f"{place} can't be reached"
    return UpstreamError(
        "upstream_unavailable", f"The endpoint is unavailable: {reason}.", retryable=retryable
    )
