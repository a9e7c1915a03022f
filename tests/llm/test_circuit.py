"""The circuit of an endpoint, on a clock of its own."""

from __future__ import annotations

import pytest

from mux.errors import UpstreamError
from mux.llm.circuit import Circuit


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


DOWN = UpstreamError("upstream_error", "busy")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def circuit(clock: Clock) -> Circuit:
    return Circuit(threshold=3, window_s=60, open_s=5, max_open_s=15, clock=clock)


def trip(circuit: Circuit) -> None:
    for _ in range(3):
        circuit.failed(DOWN, probe=circuit.admit())


def test_failures_in_a_row_open_it_and_say_when_it_is_tried_again(circuit: Circuit) -> None:
    trip(circuit)
    with pytest.raises(UpstreamError) as caught:
        circuit.admit()
    assert (caught.value.code, caught.value.retry_after) == ("upstream_unavailable", 5)
    assert "upstream_error" in caught.value.message


def test_a_success_between_failures_keeps_it_closed(circuit: Circuit) -> None:
    for _ in range(10):
        circuit.failed(DOWN, probe=circuit.admit())
        circuit.worked()
    assert circuit.state == "closed"


def test_old_failures_do_not_count(circuit: Circuit, clock: Clock) -> None:
    for _ in range(10):
        circuit.failed(DOWN, probe=circuit.admit())
        clock.now += 61
    assert circuit.state == "closed"


@pytest.mark.parametrize("code", ["upstream_rejected", "rate_limited", "turn_timeout"])
def test_errors_of_an_endpoint_that_works_do_not_count(circuit: Circuit, code: str) -> None:
    for _ in range(10):
        circuit.failed(UpstreamError(code, ""), probe=circuit.admit())
    assert circuit.state == "closed"


def test_one_probe_decides(circuit: Circuit, clock: Clock) -> None:
    trip(circuit)
    clock.now = 5
    assert circuit.state == "half_open"
    assert circuit.admit()
    with pytest.raises(UpstreamError):
        circuit.admit()
    circuit.worked()
    assert circuit.state == "closed"
    assert not circuit.admit()


def test_each_failed_probe_doubles_the_wait_up_to_a_limit(circuit: Circuit, clock: Clock) -> None:
    trip(circuit)
    waits = []
    for _ in range(3):
        clock.now += 100
        circuit.failed(DOWN, probe=circuit.admit())
        with pytest.raises(UpstreamError) as caught:
            circuit.admit()
        waits.append(caught.value.retry_after)
    assert waits == [10, 15, 15]


def test_a_probe_that_was_rejected_shows_that_it_works(circuit: Circuit, clock: Clock) -> None:
    trip(circuit)
    clock.now = 5
    circuit.failed(UpstreamError("upstream_rejected", ""), probe=circuit.admit())
    assert circuit.state == "closed"


def test_requests_that_were_under_way_when_it_opened_change_nothing(circuit: Circuit) -> None:
    trip(circuit)
    circuit.failed(DOWN, probe=False)
    assert circuit.state == "open"


SILENT = UpstreamError("upstream_unavailable", "sent nothing")


def test_requests_without_an_answer_do_not_count_while_others_are_answered(circuit: Circuit) -> None:
    for _ in range(10):
        circuit.failed(SILENT, probe=circuit.admit())
        circuit.failed(SILENT, probe=circuit.admit())
        circuit.answered()
    assert circuit.state == "closed"


def test_an_endpoint_that_begins_answers_and_breaks_them_off_is_left_alone(circuit: Circuit) -> None:
    for _ in range(3):
        probe = circuit.admit()
        circuit.answered()
        circuit.failed(UpstreamError("upstream_truncated", ""), probe=probe)
    assert circuit.state == "open"


def test_a_late_answer_shows_that_a_silent_endpoint_is_there(circuit: Circuit) -> None:
    for _ in range(3):
        circuit.failed(SILENT, probe=circuit.admit())
    assert circuit.state == "open"
    circuit.answered()
    assert circuit.state == "closed"


def test_a_late_answer_proves_nothing_of_an_endpoint_that_fails(circuit: Circuit) -> None:
    trip(circuit)
    circuit.answered()
    assert circuit.state == "open"
