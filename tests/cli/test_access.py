"""``mux keys``, ``mux share`` and what ``mux serve`` asks for, as a person meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.test_commands import home, mux, started
from tests.support.process import clean_env, serving

__all__ = ["home"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120), pytest.mark.allow_blocking]

EVERYWHERE = ("--host", "0.0.0.0")


def test_a_server_for_others_starts_with_a_key_and_says_before_how(home: Path) -> None:
    _, told = mux(home, "serve", "--port", "0", *EVERYWHERE, code=2)
    assert "address_not_loopback" in told
    for way in ("mux keys add", "proxy_header", "--insecure"):
        assert way in told
    key, told = mux(home, "keys", "add", "ann", "--title", "laptop", "--expires", "90d", "--limit", "runs=2")
    assert key.startswith("mux_k")
    assert key.count("\n") == 1
    assert key.strip() not in told
    (home / "mux.toml").write_text('[http]\nallowed_hosts = ["127.0.0.1"]\n')
    with serving(home, *EVERYWHERE, env=clean_env(home / "home")) as named:
        url = named.replace("0.0.0.0", "127.0.0.1")
        _, told = mux(home, "run", "-a", "counter", "--url", url, "3", code=2)
        assert "key_missing" in told
        out, _ = mux(home, "run", "-a", "counter", "--plain", "--url", url, "3", MUX_KEY=key.strip())
        assert "0 1 2" in out
        out, _ = mux(home, "run", "-a", "counter", "--json", "--url", url, "3", MUX_KEY=key.strip())
        run = json.loads(out.splitlines()[0])["run"]
        link, _ = mux(home, "share", run, "--url", url, "--channels", "counter", MUX_KEY=key.strip())
        assert f"{url}/shared#mux_l" in link
        listed, _ = mux(home, "share", run, "--url", url, "--list", MUX_KEY=key.strip())
        assert listed.endswith("counter\n")
        mux(home, "share", run, "--url", url, "--revoke", listed.split()[0], MUX_KEY=key.strip())
        assert mux(home, "share", run, "--url", url, "--list", MUX_KEY=key.strip())[0] == ""
        mux(home, "keys", "revoke", key.split("_")[1])  # beside the server
        _, told = mux(home, "run", "-a", "counter", "--url", url, "3", code=2, MUX_KEY=key.strip())
        assert "key_revoked" in told
        rows = [json.loads(line) for line in mux(home, "keys", "list", "--json")[0].splitlines()]
        assert [(row["owner"], row["title"], row["limits"]) for row in rows] == [
            ("ann", "laptop", {"runs": 2})
        ]
        assert "revoked" in mux(home, "keys", "list")[0]
    out, _ = mux(home, "run", "-a", "counter", "--plain", "3")  # who may open the store needs no key
    assert "0 1 2" in out


def test_an_insecure_server_says_so_at_its_start(home: Path) -> None:
    with started(home, *EVERYWHERE, "--insecure") as (_, lines):
        assert any("--insecure" in line and "without a key" in line for line in lines)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("keys", "add", "a/b"), "owner"),
        (("keys", "add", "ann", "--scope", "all"), "scopes"),
        (("keys", "add", "ann", "--limit", "runs=many"), "limits.runs"),
        (("keys", "add", "ann", "--limit", "rums=1"), "limits.rums"),
        (("keys", "add", "ann", "--expires", "3"), "90d"),
        (("keys", "add", "ann", "--store", "memory:"), "POST /api/keys"),
        (("keys", "revoke", "k0"), "key_not_found"),
        (("share", "r0"), "server_missing"),
        (("serve", "--base-path", "mux"), "base_path"),
    ],
)
def test_what_can_not_be_done_is_told(home: Path, args: tuple[str, ...], told: str) -> None:
    assert told in mux(home, *args, code=2)[1]
