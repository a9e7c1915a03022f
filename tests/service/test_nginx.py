"""Behind Debian's nginx with its default settings: prompt, resumable, and a cut connection loses nothing."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mux.log import SqliteStore
from tests.support import endpoint
from tests.support.api import call, settled, start
from tests.support.checker import Checker, http
from tests.support.followers import KINDS, Follower, post_until_accepted
from tests.support.servers import Server, Zygote
from tests.support.service_roster import script, text_of, write_home

pytestmark = [
    pytest.mark.slow,
    pytest.mark.allow_blocking,  # starts and kills processes
    pytest.mark.timeout(60),
]

NGINX = Path("/usr/sbin/nginx")
DEBIAN = Path("/etc/nginx/nginx.conf")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


class Nginx:
    """Debian's nginx.conf with a site that is one `proxy_pass`, or the one of `mux deploy nginx`; only files,
    user and processes are ours."""

    def __init__(self, home: Path, upstream: int, *, template: bool = False) -> None:
        self.home = home
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: asyncio.subprocess.Process | None = None
        text = DEBIAN.read_text()
        text = re.sub(r"^(user|pid|error_log|worker_processes)\s.*;\n", "", text, flags=re.M)
        text = re.sub(r"^include /etc/nginx/modules-enabled.*\n", "", text, flags=re.M)
        text = re.sub(r"^\s*access_log\s.*;", "\taccess_log off;", text, flags=re.M)
        text = re.sub(r"^\s*include /etc/nginx/(conf\.d|sites-enabled).*;\n", "", text, flags=re.M)
        temporary = "".join(
            f"\t{kind}_temp_path {home}/{kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        site = (
            f"\tserver {{ listen 127.0.0.1:{self.port}; location / "
            f"{{ proxy_pass http://127.0.0.1:{upstream}; }} }}\n"
        )
        if template:
            printed = subprocess.run(
                [sys.executable, "-m", "mux.cli", "deploy", "nginx", "--port", str(upstream)],
                capture_output=True, text=True, check=True,
            ).stdout  # fmt: skip
            site = printed.replace("listen 80;", f"listen 127.0.0.1:{self.port};")
            assert site != printed
        end = text.rindex("}", 0, text.index("#mail") if "#mail" in text else len(text))
        text = text[:end] + temporary + site + text[end:]
        head = f"daemon off;\nmaster_process off;\npid {home}/pid;\nerror_log {home}/error.log;\n"
        (home / "nginx.conf").write_text(head + text)

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            str(NGINX), "-p", str(self.home), "-c", str(self.home / "nginx.conf"),
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        while True:
            assert self._process.returncode is None, (self.home / "error.log").read_text()
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                await asyncio.sleep(0.01)
            else:
                writer.close()
                return

    async def kill(self) -> None:
        """All its connections are cut."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
            await self._process.wait()


@pytest.fixture(params=["proxy_pass", "template"])
async def behind(
    tmp_path: Path, servers: Zygote, request: pytest.FixtureRequest
) -> AsyncIterator[tuple[Nginx, Server]]:
    """A server with the scripted model, and nginx in front of it."""
    async with endpoint.serving(script) as model:
        write_home(tmp_path, model.url, "[http]\nheartbeat_s = 0.3\n")
        server = Server(servers, tmp_path, "--store", f"sqlite:{tmp_path / 'mux.db'}", port=free_port())
        nginx = Nginx(tmp_path, server.port, template=request.param == "template")
        try:
            await nginx.start()
            async with server.running():
                yield nginx, server
        finally:
            await nginx.kill()


async def test_the_first_event_and_every_further_one_arrive_at_once(
    behind: tuple[Nginx, Server],
) -> None:
    nginx, _ = behind
    late: list[float] = []
    body = {"message": "60 0.02", "agents": ["writer"]}
    began = time.time()
    async with http(
        "POST", f"{nginx.url}/api/runs", json_body=body, headers={"Accept": "text/event-stream"}
    ) as response:
        assert response.status == 201
        assert "nginx" in response.headers["server"]
        run = response.headers["location"].rsplit("/", 1)[1]
        checker = Checker(run)
        async for block in response.blocks():
            if not checker.events:
                assert time.time() - began < 1.0
            if "ts" in block.data:
                late.append(time.time() - block.data["ts"] / 1000)
            checker.feed([block])
    checker.assert_gapless()
    checker.assert_order()
    late.sort()
    # A proxy that buffers holds everything back for the 1.2 s that the run takes.
    assert late[len(late) // 2] < 0.2, late
    assert late[-1] < 1.0


async def test_heartbeats_pass_while_nothing_happens(behind: tuple[Nginx, Server]) -> None:
    nginx, _ = behind
    run = await start(nginx.url, "hold", message="x")
    async with asyncio.timeout(5), http("GET", f"{nginx.url}/api/runs/{run}/events") as response:
        beats = 0
        async for block in response.blocks():
            beats += block.data["type"] == "heartbeat"
            if beats == 3:
                break


async def test_a_viewer_that_leaves_nginx_is_gone_from_the_server(behind: tuple[Nginx, Server]) -> None:
    nginx, server = behind
    body = {"message": "x", "agents": ["hold"], "on_disconnect": "cancel"}
    async with http(
        "POST", f"{nginx.url}/api/runs", json_body=body, headers={"Accept": "text/event-stream"}
    ) as response:
        run = response.headers["location"].rsplit("/", 1)[1]
        await anext(response.blocks())
    async with asyncio.timeout(5):
        assert await settled(server.url, run) == "cancelled"


async def test_killing_proxy_and_server_loses_and_doubles_nothing(
    behind: tuple[Nginx, Server], tmp_path: Path
) -> None:
    nginx, server = behind
    seed = int(os.environ.get("MUX_TEST_SEED", random.randrange(1 << 30)))
    print(f"seed {seed}: MUX_TEST_SEED={seed} repeats it")
    dice = random.Random(seed)
    channels = [{"agent": "worker", "message": "4 40 0.01"}, {"agent": "writer", "message": "200 0.005"}]
    run = await post_until_accepted(lambda: nginx.url, {"channels": channels}, "key")
    followers = [Follower(lambda: nginx.url, run, kind, dice) for kind in KINDS]
    reading = [asyncio.create_task(f.follow()) for f in followers]
    for turn in range(8):
        await asyncio.sleep(dice.uniform(0.05, 0.3))
        if turn % 4 == 3:
            await server.kill()
            await server.start()
        else:
            await nginx.kill()
            await nginx.start()
    await asyncio.gather(*reading)
    snapshot = (await call("GET", f"{nginx.url}/api/runs/{run}"))[1]
    assert snapshot["channels"][0]["text"] == text_of("4 40 0.01")
    await server.stop()
    store = SqliteStore(tmp_path / "mux.db")
    await store.open()
    log = (await store.read(run, 0, limit=1_000_000, max_bytes=1 << 30)).records
    await store.close()
    for follower in followers:
        follower.check(log)
    await server.start()
