"""A conversation as every endpoint takes it: what goes out is made regular here, and only here.

What accumulates on a thread is whatever happened: two instructions, a question after a turn that failed, a
tool that never answered, half an emoji. Chat templates are strict about it and answer 400, and then the
thread is lost for good. So:

- text is valid Unicode;
- there is at most one system message, and it comes first;
- every tool call has exactly one result, right behind the message that asked for it, and no result is
  without its call; call ids are unique;
- user and assistant alternate, the user begins, and there is a user. As templates count it, an assistant who
  only calls tools is not there: a user who follows a tool's result is answered for first.

The strictest of them: Qwen 3.5 (one system message, first; a user must exist), Gemma 3 and Mistral (strict
alternation of user and assistant, of which calls and results are left out).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from mux.agent import Message, MessageCall
from mux.llm.failures import scrub_all

__all__ = ["normalised"]

_NO_RESULT = "This call has no result: it did not run, or was cut off."
_NO_TEXT = "(My answer was no text.)"
_CUT_OFF = "(I was interrupted here.)"
_BEGIN = "(The conversation begins.)"


def normalised(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The same conversation in the form of the module's preface; one that has it already is unchanged."""
    scrubbed = [_scrubbed(m) for m in messages]
    system, rest = _system(scrubbed)
    return (*system, *_alternating(_paired(rest)))


def _scrubbed(message: Message) -> Message:
    if _plain(message):
        return message
    return Message.model_validate(scrub_all(message.model_dump(mode="python", round_trip=True)))


def _plain(message: Message) -> bool:
    """Whether nothing in it can hold half a character."""
    texts = (message.content, message.reasoning or "", *(c.arguments + c.tool for c in message.calls))
    simple = all(isinstance(text, str) and _encodable(text) for text in texts)
    return simple and not message.provider_items


def _encodable(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# --- the system message -----------------------------------------------------------------------------------


def _system(messages: Sequence[Message]) -> tuple[list[Message], list[Message]]:
    """The system message, if there is one, and the others."""
    systems = [m for m in messages if m.role == "system"]
    rest = [m for m in messages if m.role != "system"]
    if systems and not any(m.role == "user" for m in rest):
        last = systems.pop()  # a request of instructions alone: somebody has to say something
        at = sum(m.role != "system" for m in messages[: messages.index(last)])
        rest.insert(at, last.model_copy(update={"role": "user"}))
    said = [m for m in systems if m.content]
    if not said:
        return [], rest
    content = said[0].content
    for message in said[1:]:
        content = _joined(content, message.content)
    return [said[0].model_copy(update={"content": content})], rest


def _joined(first: str | list[dict[str, Any]], second: str | list[dict[str, Any]]) -> Any:
    """Two contents as one: text with a blank line between, or the parts of both."""
    if not first or not second:
        return first or second
    if isinstance(first, str) and isinstance(second, str):
        return f"{first}\n\n{second}"
    return [*_parts(first), *_parts(second)]


def _parts(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


# --- calls and results ------------------------------------------------------------------------------------


def _paired(messages: Sequence[Message]) -> Iterator[Message]:
    """Each call with its result right behind it, under an id that no other call has."""
    answers, asked = _answers(messages)
    used: set[str] = set()
    for at, message in enumerate(messages):
        if message.role == "tool":
            if at not in asked:  # a result of no call: what it says is not lost
                yield Message(role="user", content=f"Result of an earlier tool call:\n{message.text}")
            continue
        if not message.calls:
            yield message
            continue
        calls: list[MessageCall] = []
        results: list[Message] = []
        for call in message.calls:
            call_id = _unused(call.call_id, used)
            calls.append(call if call_id == call.call_id else call.model_copy(update={"call_id": call_id}))
            answer = answers.get((at, call.call_id))
            if answer is None:
                answer = Message(role="tool", content=_NO_RESULT, is_error=True)
            results.append(answer.model_copy(update={"call_id": call_id}))
        yield message if tuple(calls) == message.calls else message.model_copy(update={"calls": tuple(calls)})
        yield from results


def _answers(messages: Sequence[Message]) -> tuple[dict[tuple[int, str], Message], set[int]]:
    """The result of each call by the place of its message and its id, and the places of those results. Ids
    may be used again: a result belongs to the latest call before it that has that id; of several the last
    one counts."""
    answers: dict[tuple[int, str], Message] = {}
    places: set[int] = set()
    latest: dict[str, int] = {}
    for at, message in enumerate(messages):
        for call in message.calls:
            latest[call.call_id] = at
        if message.role == "tool" and (asked := latest.get(message.call_id or "")) is not None:
            answers[asked, message.call_id or ""] = message
            places.add(at)
    return answers, places


def _unused(call_id: str, used: set[str]) -> str:
    base, number = call_id or "call", 1
    call_id = base
    while call_id in used:
        number += 1
        call_id = f"{base}_{number}"
    used.add(call_id)
    return call_id


# --- turns ------------------------------------------------------------------------------------------------


def _alternating(messages: Iterable[Message]) -> Iterator[Message]:
    """Neighbours of one role are one message, and who is missing between two is put in."""
    turn = ""  # who spoke last, as templates count it
    for message in _merged(messages):
        if not turn and message.role != "user":
            yield Message(role="user", content=_BEGIN)
            turn = "user"
        if turn == "user" and message.role == "user":
            yield Message(role="assistant", content=_CUT_OFF)
        if message.role == "user" or (message.role == "assistant" and not message.calls):
            turn = message.role
        yield message


def _merged(messages: Iterable[Message]) -> list[Message]:
    out: list[Message] = []
    for message in messages:
        if not (message.content or message.calls or message.role == "tool"):
            if not message.provider_items:
                continue  # endpoints refuse who says nothing
            message = message.model_copy(update={"content": _NO_TEXT})  # noqa: PLW2901 - it speaks by it
        last = out[-1] if out else None
        if last is not None and last.role == message.role != "tool" and not last.calls:
            out[-1] = _one(last, message)
        else:
            out.append(message)
    return out


def _one(first: Message, second: Message) -> Message:
    """Two neighbours of one role as one message; what has to go back to their provider stays with it."""
    items = [*(first.provider_items or ()), *(second.provider_items or ())]
    foreign = first.provider_items and second.provider_items and first.provider != second.provider
    return second.model_copy(
        update={
            "content": _joined(first.content, second.content),
            "reasoning": second.reasoning or first.reasoning,
            "provider_items": (second.provider_items if foreign else items) or None,
            "provider": second.provider or first.provider,
        }
    )
