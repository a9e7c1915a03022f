"""Who may do what: every route of the table, by every kind of caller."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mux.http.app import ROUTES
from mux.http.keys import Keys, NewKey
from mux.http.routes import Route
from mux.http.service import Service
from tests.support.api import call
from tests.support.checker import http
from tests.support.service import serving

BODIES: dict[str, Any] = {
    "POST /api/runs": {"message": "1", "agents": ["counter"]},
    "POST /api/runs/{run}/channels": {"agent": "counter"},
    "POST /api/runs/{run}/channels/{channel}/messages": {"content": "more"},
    "POST /api/runs/{run}/approvals/{call_id}": {"decision": "approve"},
    "POST /api/keys": {"owner": "new"},
    "POST /api/session": {"key": "mux_nothing"},
}
SCOPES = ("read", "run", "admin")
OF_A_RUN = [r for r in ROUTES if {"{run}", "{response}"} & {*r.path.split("/")} or r.path == "/api/events"]


def name(route: Route) -> str:
    return f"{route.method} {route.path}"


every_route = pytest.mark.parametrize("route", ROUTES, ids=map(name, ROUTES))


class Callers:
    """A server with keys of two owners, and a finished run of the first one."""

    def __init__(self, service: Service) -> None:
        self.url = service.url
        self.keys = Keys(service.store.keys)
        self.texts: dict[str, str] = {}
        self.ids: dict[str, str] = {}

    async def make(self, who: str, owner: str, *scopes: str, **more: Any) -> None:
        new = NewKey.model_validate({"owner": owner, "scopes": scopes or ("read", "run")} | more)
        key, self.texts[who] = await self.keys.add(new)
        self.ids[who] = key.id

    def of(self, who: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.texts[who]}"} if who in self.texts else {}

    async def run(self, who: str = "owner", message: str = "1") -> str:
        sent = self.of(who) | {"Prefer": "wait=10"}
        body = {"message": message, "agents": ["counter"]}
        status, run, _ = await call("POST", f"{self.url}/api/runs", body, headers=sent)
        assert status == 201, run
        return str(run["run"])

    async def call(
        self, who: str, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, Any, dict[str, str]]:
        return await call(method, self.url + path, body, headers=self.of(who) | headers)

    async def ask(self, who: str, route: Route, run: str) -> tuple[int, bytes, dict[str, str]]:
        """Status, whole body and headers of a request that the route would take."""
        path = route.path
        for part, value in {
            "{run}": run, "{response}": f"resp_{run}", "{channel}": "counter", "{call_id}": "c1",
            "{name}": "counter", "{id}": self.ids["spare"], "{model}": "counter",
        }.items():  # fmt: skip
            path = path.replace(part, value)
        path += {"/api/chat/stream": "?message=1&agents=counter", "/api/events": f"?run={run}"}.get(path, "")
        body = BODIES.get(name(route), {}) if route.body or route.raw_body else None
        async with http(route.method, self.url + path, json_body=body, headers=self.of(who)) as response:
            return response.status, await response.body(), response.headers


@pytest.fixture
async def callers(no_leaks: None, agents_dir: Path) -> AsyncIterator[Callers]:
    async with serving(agents=[agents_dir], http={"heartbeat_s": 0.2}) as service:
        made = Callers(service)
        await made.make("owner", "ann")
        await made.make("other", "bob")
        await made.make("spare", "bob")
        for scope in SCOPES:
            await made.make(scope, "ann", scope)
        await made.make("expired", "ann", "admin", expires_s=0.001)
        await made.make("revoked", "ann", "admin")
        await made.keys.revoke(made.ids["revoked"])
        await asyncio.sleep(0.002)
        yield made


@every_route
async def test_a_route_is_open_to_whoever_has_its_scope_and_to_nobody_else(
    callers: Callers, route: Route
) -> None:
    for who, code in (
        ("anonymous", b"key_missing"), ("expired", b"key_expired"), ("revoked", b"key_revoked")
    ):  # fmt: skip
        status, body, headers = await callers.ask(who, route, "r0")
        if route.needs == "public":
            assert status not in (403, 500)
            assert b"key_missing" not in body
        else:
            assert (status, code in body) == (401, True), body
            assert headers["www-authenticate"] == "Bearer"
    for scope in SCOPES if route.needs != "public" else ():
        status, body, _ = await callers.ask(scope, route, await callers.run())
        if SCOPES.index(scope) < SCOPES.index(route.needs):
            assert (status, b"scope_missing" in body) == (403, True), body
        else:
            assert status not in (401, 403, 500), body


@pytest.mark.parametrize("route", OF_A_RUN, ids=map(name, OF_A_RUN))
async def test_another_owners_run_is_answered_like_one_that_does_not_exist(
    callers: Callers, route: Route
) -> None:
    run = await callers.run()
    unknown = "r" + "0" * (len(run) - 1)
    if route.method == "GET":
        status, body, _ = await callers.ask("owner", route, run)
        assert status == 200 or b"workspace_unknown" in body  # theirs, and has none
    theirs = await callers.ask("other", route, run)
    nobodys = await callers.ask("other", route, unknown)
    assert theirs[0] == 404, theirs[1]
    assert theirs[0] == nobodys[0]
    assert theirs[1] == nobodys[1].replace(unknown.encode(), run.encode())
    assert await callers.run("admin")  # of the same owner, with another key
    assert (await callers.ask("admin", route, unknown))[0] == 404
    assert (await callers.call("owner", "GET", f"/api/runs/{run}"))[0] == 200  # it was not touched


async def test_lists_hold_only_ones_own(callers: Callers) -> None:
    mine, theirs = await callers.run("owner", "2"), await callers.run("other", "2")
    for who, run in (("owner", mine), ("other", theirs), ("admin", mine)):
        for query in ("", "?q=2", "?agent=counter", "?status=completed"):
            runs = (await callers.call(who, "GET", f"/api/runs{query}"))[1]["runs"]
            assert [r["run"] for r in runs] == [run], query
    assert (await callers.call("other", "GET", f"/api/events?run={theirs},{mine}"))[0] == 404


async def test_an_admin_sees_another_owner_when_asked_and_changes_nothing_there(callers: Callers) -> None:
    theirs = await callers.run("other")
    assert (await callers.call("admin", "GET", f"/api/runs/{theirs}"))[0] == 404
    assert (await callers.call("admin", "GET", f"/api/runs/{theirs}?owner=bob"))[0] == 200
    runs = (await callers.call("admin", "GET", "/api/runs?owner=bob"))[1]["runs"]
    assert [r["run"] for r in runs] == [theirs]
    status, problem, _ = await callers.call("owner", "GET", f"/api/runs/{theirs}?owner=bob")
    assert (status, problem["code"]) == (403, "scope_missing")
    assert (await callers.call("admin", "DELETE", f"/api/runs/{theirs}?owner=bob"))[0] == 400


async def test_threads_and_idempotency_keys_of_two_owners_never_meet(callers: Callers) -> None:
    answers = {}
    for who in ("owner", "other"):
        body = {"message": "1", "agents": ["counter"], "thread": "t-same"}
        sent = {"Idempotency-Key": "same"}
        status, answers[who], _ = await callers.call(who, "POST", "/api/runs", body, **sent)
        assert status == 201
    assert answers["owner"]["run"] != answers["other"]["run"]
    for who in ("owner", "other"):
        runs = (await callers.call(who, "GET", "/api/runs?thread=t-same"))[1]["runs"]
        assert [r["run"] for r in runs] == [answers[who]["run"]]


async def test_inputs_name_only_ones_own_runs(callers: Callers) -> None:
    run = await callers.run()
    problems = []
    for name_ in (run, "r" + "0" * (len(run) - 1)):
        channels = [{"agent": "counter", "message": "1", "inputs": [f"{name_}/counter"]}]
        problems.append((await callers.call("other", "POST", "/api/runs", {"channels": channels}))[:2])
    assert problems[0][0] == problems[1][0] == 400
    assert problems[0][1]["code"] == problems[1][1]["code"] == "input_unknown"
    channels = [{"agent": "counter", "message": "1", "inputs": [f"{run}/counter"]}]
    assert (await callers.call("owner", "POST", "/api/runs", {"channels": channels}))[0] == 201


async def test_faces_go_on_only_with_ones_own(callers: Callers) -> None:
    run = await callers.run()
    unknown = "r" + "0" * (len(run) - 1)
    bodies: list[dict[str, Any]] = []
    for of in (run, unknown):
        bodies += [
            {"model": "counter", "input": "1", "previous_response_id": f"resp_{of}"},
            {"model": "counter", "input": [{"type": "item_reference", "id": f"msg_{of}_3"}]},
            {
                "model": "counter",
                "input": [
                    {"type": "mcp_approval_response", "approval_request_id": f"mcpr_{of}.c1", "approve": True}
                ],
            },
        ]
    answers = [(await callers.call("other", "POST", "/v1/responses", body))[:2] for body in bodies]
    for (status, theirs), (_, nobodys) in zip(answers[:3], answers[3:], strict=True):
        assert status in (400, 404)
        assert str(theirs) == str(nobodys).replace(unknown, run)
    assert (await callers.call("owner", "POST", "/v1/responses", bodies[0]))[0] == 200
    assert (await callers.call("other", "GET", f"/api/agents/counter/ui/{run}/stream"))[0] == 204
    async with http(
        "GET", f"{callers.url}/api/agents/counter/ui/{run}/stream?startIndex=0", headers=callers.of("owner")
    ) as response:
        assert response.status == 200


@pytest.mark.parametrize("way", ["bearer", "header", "cookie"])
async def test_all_ways_to_show_a_key_decide_alike(callers: Callers, way: str) -> None:
    def sent(text: str) -> dict[str, str]:
        return {
            "bearer": {"Authorization": f"bearer {text}"},
            "header": {"X-Api-Key": text},
            "cookie": {"Cookie": f"other=1; mux_session={text}"},
        }[way]

    run = await callers.run()
    for who, status in (("owner", 200), ("other", 404), ("revoked", 401), ("expired", 401)):
        for path in (f"/api/runs/{run}", f"/v1/responses/resp_{run}"):
            got = (await call("GET", callers.url + path, headers=sent(callers.texts[who])))[0]
            assert got == status, (who, path)
    good = callers.texts["owner"]
    for bad in (good[:-1], good[:-1] + ("0" if good[-1] != "0" else "1"), good.upper(), "x", good + "0"):
        status, problem, _ = await call("GET", f"{callers.url}/api/runs", headers=sent(bad))
        assert (status, problem["code"]) == (401, "key_invalid")
        assert bad not in str(problem) or bad == "x"


async def test_a_key_with_agents_knows_no_others(callers: Callers) -> None:
    await callers.make("narrow", "ann", agents=["counter"])
    agents = (await callers.call("narrow", "GET", "/api/agents"))[1]["agents"]
    assert [a["name"] for a in agents] == ["counter"]
    models = (await callers.call("narrow", "GET", "/v1/models"))[1]["data"]
    assert "echo" not in [m["id"] for m in models]
    other = next(
        a["name"]
        for a in (await callers.call("owner", "GET", "/api/agents"))[1]["agents"]
        if a["name"] != "counter"
    )
    body = {"message": "1", "agents": ["counter", other]}
    status, problem, _ = await callers.call("narrow", "POST", "/api/runs", body)
    assert (status, problem["code"]) == (403, "agent_forbidden")
    completion = {"model": other, "messages": [{"role": "user", "content": "1"}]}
    assert (await callers.call("narrow", "POST", "/v1/chat/completions", completion))[0] in (403, 404)
    assert await callers.run("narrow")


async def test_an_open_stream_ends_within_a_heartbeat_of_its_keys_end(callers: Callers) -> None:
    body = {"message": "9000", "agents": ["counter"]}
    for end in ("revoke", "expire"):
        await callers.make("short", "ann", **({"expires_s": 0.5} if end == "expire" else {}))
        run = (await callers.call("owner", "POST", "/api/runs", {**body, "agents": ["hold"]}))[1]["run"]
        async with http(
            "GET", f"{callers.url}/api/runs/{run}/events?type=none*", headers=callers.of("short")
        ) as response:
            assert response.status == 200
            if end == "revoke":
                await callers.keys.revoke(callers.ids["short"])
            last = [block.data async for block in response.blocks()][-1]
        assert (last["type"], last["reason"]) == ("stream_rotate", "revoked")
        assert (await callers.call("short", "GET", f"/api/runs/{run}"))[0] == 401
        assert (await callers.call("owner", "POST", f"/api/runs/{run}/cancel"))[0] == 202


async def test_without_keys_loopback_is_open_and_with_the_first_it_is_not(
    agents_dir: Path, no_leaks: None
) -> None:
    async with serving(agents=[agents_dir]) as service:
        status, who, _ = await call("GET", f"{service.url}/api/session")
        assert (status, who["access"], who["owner"]) == (200, "off", "local")
        sent = {"Authorization": "Bearer anything"}  # as OpenAI's clients have to
        assert (await call("GET", f"{service.url}/v1/models", headers=sent))[0] == 200
        status, key, _ = await call("POST", f"{service.url}/api/keys", {"owner": "ann", "scopes": ["admin"]})
        assert status == 201
        assert (await call("GET", f"{service.url}/api/runs"))[0] == 401
        sent = {"Authorization": f"Bearer {key['key']}"}
        listed = (await call("GET", f"{service.url}/api/keys", headers=sent))[1]["keys"]
        assert [k["id"] for k in listed] == [key["id"]]
        assert key["key"].rpartition("_")[2] not in str(listed)
        assert "hash" not in listed[0]
        assert (await call("DELETE", f"{service.url}/api/keys/{key['id']}", headers=sent))[0] == 204
        assert (await call("GET", f"{service.url}/api/runs"))[0] == 401  # one that asked goes on asking
        assert (await call("GET", f"{service.url}/healthz"))[0] == 200
