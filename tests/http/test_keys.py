"""What is made with keys, and what bounds them: sessions, tickets, links to a run, limits, proxies."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from mux.http.keys import Keys, NewKey
from mux.http.service import Service
from tests.support.api import call, read
from tests.support.checker import http
from tests.support.service import serving

PROXY = {"proxy_header": "X-Forwarded-User", "trusted_proxies": ["127.0.0.0/8"], "proxy_admins": ["root"]}


async def key(service: Service, owner: str = "ann", **more: Any) -> dict[str, str]:
    """A new key, as headers."""
    _, text = await Keys(service.store.keys).add(NewKey.model_validate({"owner": owner} | more))
    return {"Authorization": f"Bearer {text}"}


def cookie_of(headers: dict[str, str]) -> str:
    return headers["set-cookie"].partition(";")[0]


# --- sessions -----------------------------------------------------------------------------------------------


async def test_a_key_is_exchanged_for_a_cookie_that_no_script_reads(agents_dir: Path, no_leaks: None) -> None:
    async with serving(agents=[agents_dir], access={"session_hours": 2}) as service:
        sent = await key(service, title="laptop")
        text = sent["Authorization"].removeprefix("Bearer ")
        status, session, headers = await call("POST", f"{service.url}/api/session", {"key": f" {text} "})
        assert (status, session["owner"], session["login"]) == (201, "ann", True)
        flags = headers["set-cookie"].lower()
        assert "httponly" in flags
        assert "samesite=strict" in flags
        assert "secure" not in flags  # plain HTTP
        assert "max-age=7200" in flags
        assert text not in headers["set-cookie"]
        browser = {"Cookie": cookie_of(headers)}
        status, who, _ = await call("GET", f"{service.url}/api/session", headers=browser)
        assert (status, who["access"], who["title"]) == (200, "on", "laptop")
        assert who["expires"] == session["expires"]
        assert (await call("GET", f"{service.url}/api/runs", headers=browser))[0] == 200
        status, _, headers = await call("DELETE", f"{service.url}/api/session", headers=browser)
        assert status == 204
        assert 'mux_session=""' in headers["set-cookie"]
        assert (await call("GET", f"{service.url}/api/runs", headers=browser))[0] == 401
        assert (await call("GET", f"{service.url}/api/runs", headers=sent))[0] == 200


async def test_a_session_ends_with_its_key_and_with_its_time(no_leaks: None) -> None:
    async with serving(access={"session_hours": 0.0002}) as service:
        keys = Keys(service.store.keys)
        for end in ("key", "time"):
            one, text = await keys.add(NewKey(owner="ann"))
            _, _, headers = await call("POST", f"{service.url}/api/session", {"key": text})
            browser = {"Cookie": cookie_of(headers)}
            assert (await call("GET", f"{service.url}/api/runs", headers=browser))[0] == 200
            if end == "key":
                await call(
                    "DELETE",
                    f"{service.url}/api/keys/{one.id}",
                    headers=await key(service, scopes=["admin"]),
                )
            else:
                await asyncio.sleep(0.75)  # its time
            status, problem, _ = await call("GET", f"{service.url}/api/runs", headers=browser)
            assert (status, problem["code"]) == (401, "key_revoked" if end == "key" else "key_expired")


@pytest.mark.parametrize("given", ["", "mux_x", "nothing", "k" * 201])
async def test_what_is_no_key_opens_no_session_and_is_not_repeated(
    service: Service, given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await key(service)
    status, problem, headers = await call("POST", f"{service.url}/api/session", {"key": given})
    assert status == (401 if 0 < len(given) <= 200 else 400)
    assert "set-cookie" not in headers
    if given:
        assert given not in json.dumps(problem).replace("mux_x…", "")
    assert not given or given not in "".join(capsys.readouterr())


# --- tickets ------------------------------------------------------------------------------------------------


async def test_a_ticket_opens_one_stream_once(agents_dir: Path, no_leaks: None) -> None:
    origin = "https://pages.example"
    async with serving(agents=[agents_dir], http={"allowed_origins": [origin]}) as service:
        sent = await key(service)
        _, run, _ = await call(
            "POST", f"{service.url}/api/runs", {"message": "2", "agents": ["counter"]}, headers=sent
        )
        _, made, _ = await call("POST", f"{service.url}/api/tickets", headers=sent)
        where = f"{service.url}/api/runs/{run['run']}"
        ticket = f"ticket={made['ticket']}"
        assert (await call("GET", f"{where}?{ticket}"))[0] == 401  # that is no stream
        from_page = {"Origin": origin, "Sec-Fetch-Site": "cross-site"}
        blocks = await read(f"{where}/events?{ticket}", headers=from_page)
        assert blocks[-1].data["type"] == "stream_end"
        assert (await call("GET", f"{where}/events?{ticket}"))[0] == 401
        bearer = {"Authorization": f"Bearer {made['ticket']}"}
        assert (await call("GET", f"{service.url}/api/runs", headers=bearer))[0] == 401
        _, other, _ = await call("POST", f"{service.url}/api/tickets", headers=await key(service, "bob"))
        assert (await call("GET", f"{where}/events?ticket={other['ticket']}"))[0] == 404


# --- links to a run -----------------------------------------------------------------------------------------


async def test_a_link_shows_one_run_and_not_what_its_lanes_were_told(
    agents_dir: Path, no_leaks: None
) -> None:
    async with serving(agents=[agents_dir], http={"heartbeat_s": 0.2}) as service:
        sent = await key(service)
        body = {
            "message": "2",
            "metadata": {"note": "SECRET"},
            "channels": [
                {"id": "a", "agent": "counter", "instructions": "SECRET", "params": {"seed": 1}},
                {"id": "b", "agent": "counter", "message": "3"},
            ],
        }
        _, run, _ = await call("POST", f"{service.url}/api/runs", body, headers=sent | {"Prefer": "wait=10"})
        name = run["run"]
        where = f"{service.url}/api/runs/{name}"
        assert "SECRET" in json.dumps(run)
        for asked, lanes, secret in (
            ({}, ["a", "b"], False), ({"plan": True}, ["a", "b"], True), ({"channels": ["b"]}, ["b"], False),
        ):  # fmt: skip
            status, link, _ = await call("POST", f"{where}/share", asked, headers=sent)
            assert status == 201
            assert link["url"] == f"{service.url}/shared#{link['key']}"
            guest = {"Authorization": f"Bearer {link['key']}"}
            _, seen, _ = await call("GET", where, headers=guest)
            assert [c["id"] for c in seen["channels"]] == lanes
            blocks = await read(f"{where}/events", headers=guest)
            everything = json.dumps([seen, *(b.data for b in blocks)])
            assert ("SECRET" in everything, '"seed"' in everything) == (secret, secret)
            assert {b.data.get("channel") for b in blocks} - {None} <= set(lanes)
            assert list(blocks[0].data["channels"]) == lanes
            assert ('"a"' in everything) == ("a" in lanes)
            assert blocks[-1].data["status"] == "completed"
            for method, path in (
                ("GET", "/api/runs"), ("GET", f"/api/runs/{name}/export"), ("DELETE", f"/api/runs/{name}"),
                ("POST", f"/api/runs/{name}/share"), ("POST", "/api/tickets"), ("GET", "/api/agents"),
            ):  # fmt: skip
                assert (await call(method, service.url + path, headers=guest))[0] == 403, path
        _, other, _ = await call(
            "POST", f"{service.url}/api/runs", {"message": "1", "agents": ["counter"]}, headers=sent
        )
        assert (await call("GET", f"{service.url}/api/runs/{other['run']}", headers=guest))[0] == 404
        assert (await call("POST", f"{where}/share", {"channels": ["no"]}, headers=sent))[0] == 404


async def test_a_link_is_revoked_with_the_streams_that_it_opened(agents_dir: Path, no_leaks: None) -> None:
    async with serving(agents=[agents_dir], http={"heartbeat_s": 0.2}) as service:
        sent, bob = await key(service), await key(service, "bob")
        body = {"message": "1", "agents": ["hold"], "on_disconnect": "cancel"}
        _, run, _ = await call("POST", f"{service.url}/api/runs", body, headers=sent)
        where = f"{service.url}/api/runs/{run['run']}"
        _, link, _ = await call("POST", f"{where}/share", headers=sent)
        guest = {"Authorization": f"Bearer {link['key']}"}
        shares = (await call("GET", f"{where}/share", headers=sent))[1]["shares"]
        assert [one["id"] for one in shares] == [link["id"]]
        assert link["key"] not in json.dumps(shares)
        async with http("GET", f"{where}/events", headers=guest) as response:
            assert (await call("DELETE", f"{where}/share/{link['id']}", headers=bob))[0] == 404
            assert (await call("DELETE", f"{where}/share/{link['id']}", headers=sent))[0] == 204
            last = [block.data async for block in response.blocks()][-1]
        assert (last["type"], last["reason"]) == ("stream_rotate", "revoked")
        assert (await call("GET", where, headers=guest))[0] == 401
        # the guest's leaving is nobody's: the run goes on
        assert (await call("GET", where, headers=sent))[1]["status"] == "running"
        assert (await call("POST", f"{where}/cancel", headers=sent))[0] == 202


# --- limits -------------------------------------------------------------------------------------------------


async def test_the_limit_of_a_key_that_is_reached_is_named(agents_dir: Path, no_leaks: None) -> None:
    async with serving(agents=[agents_dir]) as service:
        free = await key(service)

        async def refused(limits: dict[str, float], body: dict[str, Any], status: int = 429) -> Any:
            sent = await key(service, limits=limits)
            got, problem, headers = await call("POST", f"{service.url}/api/runs", body, headers=sent)
            assert (got, problem.get("code"), problem.get("limit")) == (status, "key_limit", *limits)
            return headers

        hold = {"message": "1", "agents": ["hold"]}
        sent = await key(service, limits={"runs": 1})
        starts = [call("POST", f"{service.url}/api/runs", hold, headers=sent) for _ in range(4)]
        answers = await asyncio.gather(*starts)
        assert sorted(status for status, _, _ in answers) == [201, 429, 429, 429]
        run = next(answer["run"] for status, answer, _ in answers if status == 201)
        assert "retry-after" in await refused({"runs": 1}, hold)
        two = {"message": "1", "channels": [{"agent": "counter"}, {"agent": "counter"}]}
        await refused({"channels": 1}, two)
        one = await key(service, limits={"channels": 1})
        status, problem, _ = await call(
            "POST", f"{service.url}/api/runs/{run}/channels", {"agent": "counter"}, headers=one
        )
        assert (status, problem["limit"]) == (429, "channels")
        seeing = await key(service, limits={"viewers": 1})
        async with http("GET", f"{service.url}/api/runs/{run}/events", headers=seeing) as response:
            await anext(response.blocks())
            status, problem, _ = await call("GET", f"{service.url}/api/runs/{run}/events", headers=seeing)
            assert (status, problem["limit"]) == (429, "viewers")
            _, usage, _ = await call("GET", f"{service.url}/api/usage", headers=seeing)
            assert usage["used"]["viewers"] == usage["used"]["runs"] == 1
            assert usage["limits"] == {"viewers": 1}
        await call("POST", f"{service.url}/api/runs/{run}/cancel", headers=free)
        assert (await call("POST", f"{service.url}/api/runs", hold, headers=await key(service, "bob")))[
            0
        ] == 201


async def test_tokens_of_the_day_and_stored_bytes_are_bounded(no_leaks: None) -> None:
    async with serving() as service:
        sent = await key(service, limits={"tokens_a_day": 5})
        body = {"message": "Say something.", "agents": ["assistant"]}
        waiting = sent | {"Prefer": "wait=10"}
        status, run, _ = await call("POST", f"{service.url}/api/runs", body, headers=waiting)
        assert (status, run["status"]) == (201, "completed")
        _, usage, _ = await call("GET", f"{service.url}/api/usage", headers=sent)
        assert usage["used"]["tokens_a_day"] >= 5
        assert usage["used"]["stored_mb"] > 0
        status, problem, headers = await call("POST", f"{service.url}/api/runs", body, headers=sent)
        assert (status, problem["limit"]) == (429, "tokens_a_day")
        assert 0 < int(headers["retry-after"]) <= 86_400
        sent = await key(service, limits={"stored_mb": usage["used"]["stored_mb"] / 2})
        status, problem, _ = await call("POST", f"{service.url}/api/runs", body, headers=sent)
        assert (status, problem["limit"], problem["retryable"]) == (429, "stored_mb", False)


# --- proxies, base path, other addresses --------------------------------------------------------------------


async def test_a_trusted_proxy_names_the_owner(agents_dir: Path, no_leaks: None) -> None:
    async with serving(agents=[agents_dir], access=PROXY) as service:
        body = {"message": "1", "agents": ["counter"]}
        ann, bob = {"X-Forwarded-User": "ann@example.org"}, {"X-Forwarded-User": "bob"}
        status, run, _ = await call("POST", f"{service.url}/api/runs", body, headers=ann)
        assert status == 201
        assert (await call("GET", f"{service.url}/api/runs/{run['run']}", headers=ann))[0] == 200
        assert (await call("GET", f"{service.url}/api/runs/{run['run']}", headers=bob))[0] == 404
        assert (await call("GET", f"{service.url}/api/runs"))[0] == 401
        assert (await call("GET", f"{service.url}/api/keys", headers=bob))[0] == 403
        root = {"X-Forwarded-User": "root"}
        assert (await call("GET", f"{service.url}/api/keys", headers=root))[0] == 200
        for odd in ("", " ", "a/b"):
            status, _, _ = await call("GET", f"{service.url}/api/runs", headers={"X-Forwarded-User": odd})
            assert status in (401, 403), odd
        assert (await call("GET", f"{service.url}/api/runs", headers=await key(service, "bob")))[0] == 200


async def test_nobody_else_may_name_an_owner_or_a_host(agents_dir: Path, no_leaks: None) -> None:
    far = PROXY | {"trusted_proxies": ["192.0.2.0/24"]}
    async with serving(agents=[agents_dir], access=far) as service:
        sent = await key(service)
        for header in ({"X-Forwarded-User": "root"}, sent | {"X-Forwarded-User": "root"}):
            status, problem, _ = await call("GET", f"{service.url}/api/runs", headers=header)
            assert (status, problem["code"]) == (403, "proxy_untrusted")
        odd = sent | {"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "https"}
        _, run, _ = await call(
            "POST", f"{service.url}/api/runs", {"message": "1", "agents": ["counter"]}, headers=odd
        )
        _, link, _ = await call("POST", f"{service.url}/api/runs/{run['run']}/share", headers=odd)
        assert link["url"].startswith(f"{service.url}/")


async def test_below_a_path_behind_a_proxy_everything_works(agents_dir: Path, no_leaks: None) -> None:
    host = {"allowed_hosts": ["mux.example"]}
    async with serving(agents=[agents_dir], access=PROXY, base_path="/mux/", http=host) as service:
        assert service.url.endswith("/mux")
        root = service.url.removesuffix("/mux")
        sent = {"X-Forwarded-User": "ann", "X-Forwarded-Host": "mux.example", "X-Forwarded-Proto": "https"}
        body = {"message": "1", "agents": ["counter"]}
        origin = {"Origin": "https://mux.example", "Sec-Fetch-Site": "same-origin"}
        status, run, headers = await call("POST", f"{service.url}/api/runs", body, headers=sent | origin)
        assert (status, headers["location"]) == (201, f"/mux/api/runs/{run['run']}")
        assert (await call("GET", root + headers["location"], headers=sent))[0] == 200
        _, link, _ = await call("POST", f"{root}{headers['location']}/share", headers=sent)
        assert link["url"].startswith("https://mux.example/mux/shared#mux_")
        for path in ("/", "/docs", "/js/main.js", "/openapi.json"):
            async with http("GET", service.url + path, headers=sent) as response:
                assert response.status == 200, path
        async with http("GET", service.url, headers=sent) as response:
            assert (response.status, response.headers["location"]) == (308, "/mux/")
        assert (await call("GET", f"{root}/api/runs", headers=sent))[0] == 404
        status, problem, _ = await call("GET", f"{service.url}/v1/models", headers={"Host": "mux.example"})
        assert (status, problem["error"]["code"]) == (401, "key_missing")
        text = (await key(service))["Authorization"].removeprefix("Bearer ")
        _, _, headers = await call("POST", f"{service.url}/api/session", {"key": text}, headers=sent)
        assert "secure" in headers["set-cookie"].lower()
        assert "path=/mux" in headers["set-cookie"].lower()


async def test_everywhere_is_served_with_keys_and_insecurely_only_when_told_so(
    tmp_path: Path, no_leaks: None
) -> None:
    store = f"sqlite:{tmp_path}/mux.db"
    everywhere: dict[str, Any] = {"host": "0.0.0.0", "store": store, "http": {"allowed_hosts": ["127.0.0.1"]}}
    async with serving(**everywhere, insecure=True) as service:
        assert any("--insecure" in line for line in service.describe())
        url = service.url.replace("0.0.0.0", "127.0.0.1")
        status, who, _ = await call("GET", f"{url}/api/session")
        assert (status, who["access"], who["scopes"]) == (200, "insecure", ["admin"])
        _, made, _ = await call("POST", f"{url}/api/keys", {"owner": "ann"})
        assert (await call("GET", f"{url}/api/runs"))[0] == 200
    async with serving(**everywhere) as service:
        assert not any("--insecure" in line for line in service.describe())
        url = service.url.replace("0.0.0.0", "127.0.0.1")
        assert (await call("GET", f"{url}/api/runs"))[0] == 401
        sent = {"X-Api-Key": made["key"]}
        assert (await call("GET", f"{url}/api/runs", headers=sent))[0] == 200


async def test_a_secret_is_in_no_log_store_or_event(
    tmp_path: Path, no_leaks: None, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mux.db"
    async with serving(store=f"sqlite:{file}", log_level="debug") as service:
        sent = await key(service)
        secret = sent["Authorization"].rpartition("_")[2]
        body = {"message": "Say something.", "agents": ["assistant"]}
        _, run, _ = await call("POST", f"{service.url}/api/runs", body, headers=sent | {"Prefer": "wait=10"})
        async with http("GET", f"{service.url}/api/runs/{run['run']}/export", headers=sent) as response:
            assert secret not in (await response.body()).decode()
        for path in (f"/api/runs?ticket=mux_t_{secret}", f"/api/nothing?key={secret}"):
            _, problem, _ = await call("GET", service.url + path, headers=sent)
            assert secret not in json.dumps(problem)
    assert secret not in "".join(capsys.readouterr())
    kept = await asyncio.to_thread(file.read_bytes)
    assert secret.encode() not in kept
    assert b"ann" in kept
