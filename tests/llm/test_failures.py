"""Statuses, headers and causes → our codes and sentences."""

from __future__ import annotations

import json
import socket
import ssl

import pytest

from mux.llm.failures import rejected, reported, retry_after, scrub_all, unreachable

NOW = 1_790_000_000.0  # Mon, 21 Sep 2026 14:13:20 GMT


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9),
        ({"retry-after": "Mon, 21 Sep 2026 14:13:50 GMT"}, 30),
        ({"retry-after": "Mon, 21 Sep 2026 14:13:50"}, 30),
        ({"retry-after": "Mon, 21 Sep 2020 14:13:50 GMT"}, 0),
        ({"retry-after": "tomorrow"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({}, None),
    ],
)
def test_the_wait_is_read_in_all_its_spellings(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, NOW) == seconds


@pytest.mark.parametrize(
    ("status", "code", "retryable"),
    [
        (301, "upstream_rejected", False),
        (400, "upstream_rejected", False),
        (401, "upstream_rejected", False),
        (403, "upstream_rejected", False),
        (404, "upstream_rejected", False),
        (408, "upstream_error", True),
        (413, "upstream_rejected", False),
        (422, "upstream_rejected", False),
        (429, "rate_limited", True),
        (500, "upstream_error", True),
        (503, "upstream_error", True),
        (529, "upstream_error", True),
    ],
)
def test_a_status_has_one_code(status: int, code: str, retryable: bool) -> None:
    error = rejected(status, {}, b"", now=NOW)
    assert (error.code, error.retryable) == (code, retryable)
    assert str(status) in error.message


def test_a_used_up_quota_is_not_tried_again() -> None:
    error = rejected(429, {}, b'{"error":{"code":"insufficient_quota"}}', now=NOW)
    assert (error.code, error.retryable) == ("rate_limited", False)
    assert "quota" in error.message


def test_a_refused_key_names_its_variable() -> None:
    assert "MY_KEY" in rejected(401, {}, b"", now=NOW, key_env="MY_KEY").message
    assert "api_key_env" in rejected(401, {}, b"", now=NOW).message


def test_a_conversation_that_is_too_long_is_told() -> None:
    error = rejected(400, {}, b'{"error":{"type":"x","code":"context_length_exceeded"}}', now=NOW)
    assert error.extra["reason"] == "context_length_exceeded"
    assert "longer than the model's context" in error.message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[]",
        b"{}",
        b'{"error":"CANARY"}',
        b'{"error":{"code":"CANARY"}}',
        b'{"error":{"message":"CANARY","type":["CANARY"]}}',
        b"[" * 100_000,
    ],
)
def test_bodies_are_never_passed_on(body: bytes) -> None:
    for status in (302, 400, 401, 403, 404, 429, 500):
        error = rejected(status, {"location": "CANARY"}, body, now=NOW)
        assert "CANARY" not in f"{error} {error.extra}"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            {"error": {"message": "Jinja Exception: System message must be at the beginning."}},
            "Jinja Exception: System",
        ),
        (
            {"detail": [{"loc": ["body", "top_k"], "msg": "extra fields not permitted"}]},
            "body.top_k: extra fields",
        ),
        ({"error": "Bad key sk-abcDEF123 in the body"}, "Bad key [masked] in the body"),
        ({"message": "No such thing: Zm9vYmFyYmF6cXV4MTIzNDU2Nzg5MA=="}, "No such thing: [masked]"),
        ({"message": "Bearer abcdefgh was\nwrong\x1b[2J"}, "[masked] was wrong [2J"),
    ],
)
def test_a_400_says_what_the_endpoint_objected_to_without_its_secrets(body: object, said: str) -> None:
    assert said in rejected(400, {}, json.dumps(body).encode(), now=NOW).message
    assert said not in rejected(401, {}, json.dumps(body).encode(), now=NOW).message


def test_a_long_objection_is_cut() -> None:
    error = rejected(400, {}, json.dumps({"error": "too long " * 500}).encode(), now=NOW)
    assert len(error.message) < 400


@pytest.mark.parametrize(
    ("error", "retryable"),
    [
        ({"type": "overloaded_error"}, True),
        ({"code": 502}, True),
        ({"code": "server_error"}, True),
        ({"code": 400}, False),
        ({"type": "invalid_request_error"}, False),
        ({"code": "context_length_exceeded"}, False),
        ({"type": "rate_limit_error"}, True),
        ({"code": "insufficient_quota"}, False),
        ({}, True),
    ],
)
def test_errors_inside_an_answer_are_upstream_errors(error: dict[str, object], retryable: bool) -> None:
    found = reported(error)
    assert (found.code, found.retryable) == ("upstream_error", retryable)


def _caused(outer: Exception, inner: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    ("cause", "words", "retryable"),
    [
        (ConnectionRefusedError(111, "refused"), "refused the connection", True),
        (OSError(111, "Connect call failed"), "refused the connection", True),
        (socket.gaierror(-2, "unknown"), "can't be resolved", True),
        (ssl.SSLCertVerificationError("bad"), "certificate", False),
        (ssl.SSLError("wrong version"), "TLS", False),
        (ConnectionResetError(104, "reset"), "closed the connection", True),
        (TimeoutError(), "in time", True),
        (ValueError("CANARY"), "can't be reached", True),
    ],
)
def test_an_endpoint_that_is_not_there_is_told_by_its_cause(
    cause: Exception, words: str, retryable: bool
) -> None:
    error = unreachable(_caused(RuntimeError("CANARY"), cause), "host:1")
    assert (error.code, error.retryable) == ("upstream_unavailable", retryable)
    assert words in error.message
    assert "CANARY" not in error.message


def test_every_string_of_a_value_can_be_encoded_after_scrubbing() -> None:
    value = scrub_all(json.loads('{"\\ud800": ["\\ud83d\\ude00", {"a": "x\\udc00"}], "n": 1}'))
    assert value == {"\ufffd": ["😀", {"a": "x\ufffd"}], "n": 1}
