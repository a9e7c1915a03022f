"""Keys, and what is made with them: sessions of the dashboard, tickets for one stream, links to one run.

All are `mux_<id>_<secret>`, and all are a `Grant`: who it is for and what that one may. The store has the
grant and the secret's SHA-256 only: 192 random bits can't be guessed from it, so nothing slower is needed.

What was made with a key is worth no more than the key: it ends when that one is revoked or expires.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Sequence
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from mux.clock import now_ms
from mux.engine.plan import agent_forbidden
from mux.errors import BadRequest, NotFound
from mux.log.protocols import KeyStore
from mux.requests import KeyLimits
from mux.viewers import Shared

__all__ = ["LOCAL", "SCOPES", "Grant", "Keys", "NewKey", "Scope", "key_not_found"]

Scope: TypeAlias = Literal["read", "run", "admin"]
Kind: TypeAlias = Literal["key", "session", "ticket", "share"]
SCOPES: Final[tuple[Scope, ...]] = ("read", "run", "admin")  # each may what those before it may
OWNER: Final = r"^[^\s/\x00-\x1f\x7f](?:[^/\x00-\x1f\x7f]{0,126}[^\s/\x00-\x1f\x7f])?$"

_FORM = re.compile(r"mux_([kstl][0-9a-z]{11})_([0-9a-f]{48})", re.ASCII)
_LETTERS: Final[dict[str, Kind]] = {"k": "key", "s": "session", "t": "ticket", "l": "share"}
_NO_HASH: Final = hashlib.sha256(b"").hexdigest()
_MAX_FRESH = 4096


class Grant(BaseModel):
    """Who calls, and what that one may.

    Attributes:
        id: names it in lists; empty where there was no key (access is off, or a proxy named the owner).
        hash: SHA-256 of the secret.
        agents: those that it may use; ``None`` = all.
        of: the key that it was made with.
        run, channels, plan: of a share: the one run that it shows, the only lanes of it (``None`` = all), and
            whether their instructions and params.
        created, expires, revoked: ms since the epoch.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: Kind = "key"
    id: str = ""
    hash: str = ""
    owner: str
    scopes: tuple[Scope, ...] = ("read", "run")
    title: str | None = None
    agents: tuple[str, ...] | None = None
    limits: KeyLimits = KeyLimits()
    created: int = 0
    expires: int | None = None
    revoked: int | None = None
    of: str | None = None
    run: str | None = None
    channels: tuple[str, ...] | None = None
    plan: bool = False

    def may(self, scope: Scope) -> bool:
        """Whether one of its scopes includes this one."""
        return max(map(SCOPES.index, self.scopes)) >= SCOPES.index(scope)

    def check_agent(self, name: str) -> None:
        """Refuse an agent that it may not use. Raises BadRequest ``agent_forbidden``."""
        if self.agents is not None and name not in self.agents:
            raise agent_forbidden(name, self.agents)

    def shared(self) -> Shared | None:
        """What of a run it shows; ``None``: all, as it is no link."""
        if self.run is None:
            return None
        return Shared(None if self.channels is None else frozenset(self.channels), self.plan)

    def listed(self) -> dict[str, object]:
        """As lists show it: everything but the hash."""
        return self.model_dump(exclude={"hash", "kind", "of"}, exclude_none=True)


LOCAL: Final = Grant(owner="local", scopes=("admin",))
"""Where access is off: whoever reaches the server is the one person whose it is."""


class NewKey(BaseModel):
    """``POST /api/keys``: a key to be made.

    Attributes:
        expires_s: seconds until it expires; left out = never.
        agents: those that it may use; left out = all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    owner: Annotated[str, StringConstraints(pattern=OWNER)]
    scopes: tuple[Scope, ...] = Field(default=("read", "run"), min_length=1, max_length=3)
    title: str | None = Field(default=None, max_length=200)
    agents: tuple[str, ...] | None = Field(default=None, min_length=1, max_length=256)
    expires_s: float | None = Field(default=None, gt=0, le=100 * 365 * 86_400)
    limits: KeyLimits = KeyLimits()

    @field_validator("scopes", "agents")
    @classmethod
    def _once(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return value and tuple(dict.fromkeys(value))


class Keys:
    """Makes grants, finds them by their secret, and takes them back.

    Args:
        store: where they are kept.
        fresh_s: seconds for which a record may be used without another look at the store.
    """

    def __init__(self, store: KeyStore, *, fresh_s: float = 1.0) -> None:
        self._store = store
        self._fresh_s = fresh_s
        self._fresh: dict[str, tuple[float, Grant | None]] = {}
        self._any: tuple[float, bool] = (0.0, False)

    # --- making -------------------------------------------------------------------------------------------

    async def add(self, new: NewKey) -> tuple[Grant, str]:
        """Make a key; returns it and its only copy as text."""
        key = Grant.model_validate(new.model_dump(exclude={"expires_s"}))
        self._any = (0.0, False)
        return await self.make("key", key, new.expires_s)

    async def make(self, kind: Kind, grant: Grant, expires_s: float | None) -> tuple[Grant, str]:
        """Make a grant like this one, which ends at the latest with this one (a share: with its key).

        Returns:
            It, and its only copy as text.
        """
        letter = next(letter for letter, of in _LETTERS.items() if of == kind)
        name = letter + "".join(secrets.choice("0123456789abcdefghijklmnopqrstuvwxyz") for _ in range(11))
        secret = secrets.token_hex(24)
        now = now_ms()
        of = {"key": None, "share": grant.of or grant.id or None}.get(kind, grant.id or None)
        change = {
            "kind": kind, "id": name, "hash": _digest(secret), "created": now, "revoked": None, "of": of,
            "expires": None if expires_s is None else now + round(expires_s * 1000),
        }  # fmt: skip
        made = grant.model_copy(update=change)
        await self._put(made)
        return made, f"mux_{name}_{secret}"

    async def _put(self, grant: Grant) -> None:
        # A key is kept for ever: a server that ever had one goes on asking for one.
        end = None if grant.kind == "key" else grant.expires
        await self._store.put(grant.kind, grant.id, grant.model_dump_json().encode(), expires=end)
        self._fresh.pop(grant.id, None)

    # --- finding ------------------------------------------------------------------------------------------

    async def any(self) -> bool:
        """Whether there is, or ever was, a key: then the server asks for one."""
        now = time.monotonic()
        if not self._any[1] and now - self._any[0] >= self._fresh_s:
            self._any = (now, bool(await self._store.all("key")))
        return self._any[1]

    async def find(self, text: str) -> Grant:
        """The grant that this text stands for. A ticket is used up by it.

        Raises:
            BadRequest: ``key_invalid``, ``key_revoked``, ``key_expired`` (401).
        """
        match = _FORM.fullmatch(text)
        if match is None:
            raise _invalid()
        name, secret = match[1], match[2]
        grant = await self._get(name)
        if not hmac.compare_digest(_digest(secret), grant.hash if grant else _NO_HASH) or grant is None:
            raise _invalid()
        grant = await self._valid(grant)
        if grant.kind == "ticket" and await self._store.pop("ticket", name) is None:
            raise _invalid()
        return grant

    async def _valid(self, grant: Grant) -> Grant:
        """The grant, with what its key may now. Raises BadRequest (401) where either has ended."""
        key, shared = grant, grant.kind == "share"
        _check_end(grant)
        while key.of is not None:
            made_with = await self._get(key.of)
            if made_with is None:
                raise _revoked()
            _check_end(made_with)
            key, shared = made_with, shared or made_with.kind == "share"
        if key is grant or shared:
            return grant
        return grant.model_copy(
            update={"scopes": key.scopes, "agents": key.agents, "limits": key.limits, "title": key.title}
        )

    async def still(self, name: str) -> bool:
        """Whether the grant of this id holds now."""
        try:
            grant = await self._get(name)
            if grant is not None:
                await self._valid(grant)
        except BadRequest:
            return False
        return grant is not None

    async def _get(self, name: str) -> Grant | None:
        at, grant = self._fresh.get(name, (0.0, None))
        if grant is None or time.monotonic() - at > self._fresh_s:
            data = await self._store.get(_LETTERS[name[0]], name)
            grant = Grant.model_validate_json(data) if data is not None else None
            if len(self._fresh) >= _MAX_FRESH:
                self._fresh.clear()
            self._fresh[name] = (time.monotonic(), grant)
        return grant

    # --- lists, and the end -------------------------------------------------------------------------------

    async def all(self, kind: Kind) -> Sequence[Grant]:
        """All of a kind, oldest first."""
        found = [Grant.model_validate_json(data) for data in await self._store.all(kind)]
        return sorted(found, key=lambda grant: (grant.created, grant.id))

    async def revoke(self, name: str) -> None:
        """End a key: what it was used for, and what was made with it, ends within a heartbeat.

        Raises:
            NotFound: ``key_not_found``.
        """
        data = await self._store.get("key", name)
        if data is None:
            raise key_not_found(name)
        key = Grant.model_validate_json(data)
        if key.revoked is None:
            await self._put(key.model_copy(update={"revoked": now_ms()}))

    async def drop(self, kind: Kind, name: str) -> None:
        """End a session, a ticket or a share; idempotent."""
        await self._store.pop(kind, name)
        self._fresh.pop(name, None)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _check_end(grant: Grant) -> None:
    if grant.revoked is not None:
        raise _revoked()
    if grant.expires is not None and grant.expires <= now_ms():
        raise BadRequest("key_expired", "This key has expired; ask for a new one.", status=401)


def key_not_found(name: str) -> NotFound:
    """The answer to an id that no key or link has."""
    return NotFound("key_not_found", f"There is no key {name[:40]!r}; mux keys list names them.")


def _invalid() -> BadRequest:
    return BadRequest(
        "key_invalid", "This is no key of this server: check that it was copied whole.", status=401
    )


def _revoked() -> BadRequest:
    return BadRequest("key_revoked", "This key was revoked, or what it was made with.", status=401)
