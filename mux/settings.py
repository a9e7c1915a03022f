"""One frozen `Settings`: flags > environment ``MUX_*`` > ``mux.toml`` > defaults.

Unknown keys in ``mux.toml`` are errors with the place and the nearest known name: a misspelt limit that is
ignored in silence is worse than none.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    IPvAnyNetwork,
    ValidationError,
    field_validator,
    model_validator,
)

from mux.errors import ConfigError

__all__ = [
    "AcpProgram",
    "GuardrailRule",
    "Limits",
    "McpServer",
    "Price",
    "Provider",
    "Settings",
    "Timeouts",
    "WorkspaceLimits",
    "load_settings",
    "problem_of",
]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Timeouts(_Section):
    """Watchdogs of a model stream, in seconds.

    The defaults are those of patience: a reasoning model may be silent for a minute or two, before its first
    word and in mid-answer, and so may a local server that loads a model or reads four long prompts at once.
    """

    first_byte_s: float = Field(default=120.0, gt=0)
    progress_s: float = Field(default=120.0, gt=0)
    turn_s: float = Field(default=1800.0, gt=0)


class Provider(_Section):
    """``[providers.NAME]``: one endpoint that models are reached at.

    Attributes:
        api_key_env: the environment variable that holds the key (never the key itself).
        api: which wire API it speaks.
        headers_env: extra header name → environment variable that holds its value.
        max_retries: how often a step is tried again while nothing of it was shown.
        context_tokens: the context limit of its models, where it is known.
        models: names to offer where the endpoint has no ``/models``.
        think_tags: ``<think>…</think>`` at the very beginning of an answer is reasoning: local servers
            without a reasoning parser send it as text. Off: it is text like any other.
    """

    base_url: str
    api_key_env: str | None = None
    api: Literal["chat", "responses"] = "chat"
    timeouts: Timeouts = Timeouts()
    headers_env: dict[str, str] = {}
    azure_api_version: str | None = None
    max_retries: int = Field(default=3, ge=0, le=10)
    max_concurrent: int | None = Field(default=None, ge=1)
    context_tokens: int | None = Field(default=None, ge=256)
    models: tuple[str, ...] = ()
    think_tags: bool = True
    params: dict[str, Any] = {}

    @field_validator("base_url")
    @classmethod
    def _an_address(cls, value: str) -> str:
        try:
            address = urlsplit(value)
            usable = address.scheme in ("http", "https") and address.hostname and address.port != 0
        except ValueError:  # a port that is no number, half an IPv6 address
            usable = False
        if not usable:  # without its words: it may hold a password
            raise ValueError("give the endpoint's address, such as http://127.0.0.1:11434/v1")
        return value


class Price(_Section):
    """``[prices."provider:model"]``: money per million tokens."""

    input: float
    output: float
    cached: float | None = None
    currency: str = "USD"


class Documents(_Section):
    """``[documents]``: what the document tools may read."""

    roots: tuple[Path, ...] = ()

    @field_validator("roots", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class Http(_Section):
    """``[http]``: who may call."""

    allowed_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "::1")
    max_body_mb: float = Field(default=8.0, gt=0)
    write_timeout_s: float = Field(default=15.0, gt=0)
    heartbeat_s: float = Field(default=10.0, gt=0)
    rotate_s: float | None = Field(default=None, gt=0)


class Access(_Section):
    """``[access]``: how the server knows who calls, besides by keys.

    Attributes:
        proxy_header: in which an authenticating proxy names the user, who is then the owner.
        trusted_proxies: from where that header, and ``X-Forwarded-Proto`` and ``-Host``, are believed.
        proxy_admins: users who may do what the scope ``admin`` may; the others have ``run``.
        session_hours: after which the dashboard asks for the key again.
    """

    proxy_header: str | None = Field(default=None, pattern=r"^[A-Za-z0-9-]{1,64}$")
    trusted_proxies: tuple[IPvAnyNetwork, ...] = ()
    proxy_admins: tuple[str, ...] = ()
    session_hours: float = Field(default=12.0, gt=0, le=24 * 365)

    @model_validator(mode="after")
    def _from_somewhere(self) -> Self:
        if self.proxy_header is not None and not self.trusted_proxies:
            raise ValueError("proxy_header is believed from trusted_proxies only: name them")
        return self


class Limits(_Section):
    """``[limits]``: every bound that a user may want to move."""

    max_runs: int = Field(default=200, ge=1)
    max_queue: int = Field(default=200, ge=0)
    max_channels: int = Field(default=32, ge=1)
    max_viewers: int = Field(default=4000, ge=1)
    run_timeout_s: float = Field(default=3600.0, gt=0)
    lease_s: float = Field(default=10.0, ge=0.5)  # after which the runs of a worker that hangs go elsewhere
    max_reply_mb: float = Field(default=32.0, gt=0)
    max_steps: int = Field(default=24, ge=1)
    drain_s: float = Field(default=20.0, ge=0)
    approval_s: float = Field(default=600.0, gt=0)
    idempotency_s: float = Field(default=86_400.0, gt=0)


class Retention(_Section):
    """``[retention]``: finished, unstarred runs above a bound are forgotten; none by default."""

    max_age_days: float | None = Field(default=None, gt=0)
    max_runs: int | None = Field(default=None, ge=1)
    max_mb: float | None = Field(default=None, gt=0)


class WorkspaceLimits(_Section):
    """``[workspaces]``: the copies that lanes work on; each bound is for one lane.

    Attributes:
        dir: where they are; default: beside the SQLite store, else in the user's data folder.
        max_age_days: a workspace that no run has used for so long is removed.
    """

    dir: Path | None = None
    max_mb: float = Field(default=2048.0, gt=0)
    max_files: int = Field(default=200_000, ge=1)
    max_age_days: float = Field(default=14.0, gt=0)


class AcpProgram(_Section):
    """``[acp.NAME]``: a program that speaks the Agent Client Protocol, as an agent of that name.

    Attributes:
        env: names of environment variables that it may see, besides the usual ones (PATH, HOME, LANG, …).
        workspace: the folder that each of its lanes gets a copy of; without one, they begin with an
            empty one.
    """

    command: tuple[str, ...] = Field(min_length=1)
    env: tuple[str, ...] = ()
    workspace: Path | None = None
    description: str = ""
    instructions: str = ""


class GuardrailRule(_Section):
    """``[guardrails.NAME]``: a pattern, a list of words, a ready-made rule, or a Python function.

    Attributes:
        pattern: regular expression in the dialect of the ``regex`` package.
        words: forbidden words or phrases, matched literally.
        preset: name of a ready-made rule (``secrets``, ``email``, ``phone``, ``card``, ``injection``).
        function: ``module:function`` or ``path.py:function``.
        refusal: what the user sees instead of a blocked reply.
        normalize: also match over NFKC, zero-width and soft-hyphen variants.
        fold: the same, and letters of other scripts that look like Latin ones match as those.
    """

    stage: tuple[Literal["input", "output", "tool_input", "tool_output"], ...] = ("output",)
    pattern: str | None = None
    words: tuple[str, ...] = ()
    preset: str | None = None
    function: str | None = None
    action: Literal["block", "mask"] = "block"
    ignore_case: bool = False
    normalize: bool = False
    fold: bool = False
    mask: str = "[masked]"
    refusal: str | None = None
    max_hold: int | None = Field(default=None, ge=1)
    timeout_s: float = Field(default=0.25, gt=0)

    @field_validator("stage", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class McpServer(_Section):
    """``[mcp.NAME]``: a tool server, by command (stdio) or URL (streamable HTTP).

    Attributes:
        env, env_from: the command's environment, by value and by the name of a variable of ours. Of our own
            environment it gets nothing else but PATH: no HOME, no USER, no keys.
        headers_env: HTTP header → name of the variable that holds its value.
        tools: those to offer; empty = all.
    """

    command: tuple[str, ...] = ()
    url: str | None = None
    env: dict[str, str] = {}
    env_from: tuple[str, ...] = ()
    headers_env: dict[str, str] = {}
    cwd: Path | None = None
    timeout_s: float = Field(default=60.0, gt=0)
    tools: tuple[str, ...] = ()
    approval: Literal["never", "once", "always"] = "never"
    idempotent: bool = False


class WebSearch(_Section):
    """``[web_search]``: a SearXNG-style JSON URL, or a tool of an MCP server."""

    url: str | None = None
    mcp: str | None = None


class Fetch(_Section):
    """``[fetch]``: the one door for outgoing HTTP other than model requests."""

    allow_private: tuple[str, ...] = ()  # host names or CIDR blocks that may be private
    allow_hosts: tuple[str, ...] = ()  # empty = any public host
    max_mb: float = Field(default=5.0, gt=0)
    timeout_s: float = Field(default=20.0, gt=0)
    max_redirects: int = Field(default=5, ge=0)


class Settings(_Section):
    """Everything that can be configured, after merging; frozen."""

    host: str = "127.0.0.1"
    port: int = Field(default=8765, ge=0, le=65535)
    base_path: str = ""  # in front of every path, for a proxy that serves other things as well
    insecure: bool = False  # nobody is asked for a key, whatever the address
    store: str | None = None  # None = sqlite in the user's data directory
    durability: Literal["normal", "full"] = "normal"
    role: Literal["all", "api", "worker"] = "all"
    processes: int = Field(default=1, ge=1, le=256)  # behind one port; more than one needs a Redis store
    agents: tuple[Path, ...] = ()
    default_agents: tuple[str, ...] = ("assistant",)
    model: str | None = None
    aliases: dict[str, str] = {}  # names for `model` over /v1: agents (`a+b` too) or provider:model
    log_format: Literal["auto", "json", "console"] = "auto"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    refusal: str = "I can't help with that here: a guardrail of this server stopped the reply."
    providers: dict[str, Provider] = {}
    prices: dict[str, Price] = {}
    documents: Documents = Documents()
    http: Http = Http()
    access: Access = Access()
    limits: Limits = Limits()
    retention: Retention = Retention()
    workspaces: WorkspaceLimits = WorkspaceLimits()
    acp: dict[str, AcpProgram] = {}
    guardrails: dict[str, GuardrailRule] = {}
    mcp: dict[str, McpServer] = {}
    web_search: WebSearch = WebSearch()
    fetch: Fetch = Fetch()
    config_path: Path | None = None

    @field_validator("agents", mode="before")
    @classmethod
    def _paths(cls, value: Any) -> Any:
        return value.split(os.pathsep) if isinstance(value, str) else value

    @field_validator("base_path")
    @classmethod
    def _a_path(cls, value: str) -> str:
        value = value.rstrip("/")
        if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)*", value, re.ASCII):
            raise ValueError("give it as /name, in letters, digits and . _ ~ -")
        return value

    def default_model(self) -> str:
        """The model of agents that name none: configured, else OpenAI by environment, else rehearsal."""
        if self.model:
            return self.model
        if "openai" in self.providers:
            return "openai:" + (os.environ.get("OPENAI_MODEL") or "gpt-4.1-mini")
        return "rehearsal"


_SCALARS = (
    "host", "port", "base_path", "insecure", "store", "durability", "role", "processes", "agents", "model",
    "log_format", "log_level",
)  # fmt: skip


def load_settings(
    flags: Mapping[str, Any] | None = None,
    *,
    config: Path | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Settings:
    """Merge all sources.

    Args:
        flags: values from the command line; ``None`` values are ignored.
        config: ``--config``; else ``MUX_CONFIG``; else ``mux.toml`` in ``cwd`` if there is one.
        env: the environment (default ``os.environ``).
        cwd: the working directory; relative paths of a file are relative to the file.

    Raises:
        ConfigError: ``config_invalid``, with file, key and the nearest known name.
    """
    env = os.environ if env is None else env
    cwd = cwd or Path.cwd()
    path = config or (Path(env["MUX_CONFIG"]) if env.get("MUX_CONFIG") else None)
    if path is None and (cwd / "mux.toml").is_file():
        path = cwd / "mux.toml"
    values: dict[str, Any] = _read_toml(path) if path else {}
    if path:
        _anchor(values, path.parent)
        values["config_path"] = path
    named = _from_environment(values, env)
    flags = {k: v for k, v in (flags or {}).items() if v is not None}
    named |= {("documents" if n == "docs" else n,): f"--{n.replace('_', '-')}" for n in flags}
    if docs := flags.pop("docs", None):
        values["documents"] = {"roots": docs}
    values.update(flags)
    try:
        return Settings.model_validate(values)
    except ValidationError as e:
        raise ConfigError("config_invalid", _explain(e, path, named)) from e


def _from_environment(values: dict[str, Any], env: Mapping[str, str]) -> dict[tuple[str, ...], str]:
    """Put in what the environment sets; returns which variable each of these settings came from."""
    named: dict[tuple[str, ...], str] = {}
    for name in _SCALARS:
        variable = f"MUX_{name.upper()}"
        if text := env.get(variable):
            values[name] = text
            named[name,] = variable
    if env.get("MUX_DOCS"):
        values["documents"] = {"roots": env["MUX_DOCS"].split(os.pathsep)}
        named["documents",] = "MUX_DOCS"
    providers = values.get("providers") or {}
    known = isinstance(providers, dict) and "openai" in providers
    if not known and (env.get("OPENAI_API_KEY") or env.get("OPENAI_BASE_URL")):
        openai = {
            "base_url": env.get("OPENAI_BASE_URL") or "https://api.openai.com/v1",
            "api_key_env": "OPENAI_API_KEY",
        }
        if isinstance(providers, dict):  # else it is an error, said where the values are looked at
            values["providers"] = {**providers, "openai": openai}
            named["providers", "openai"] = "OPENAI_BASE_URL"
    return named


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError("config_missing", f"There is no configuration file {path}.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise ConfigError("config_invalid", f"{path} can't be read: {e}.") from e


def _anchor(values: dict[str, Any], base: Path) -> None:
    """Make relative paths of a file relative to that file, not to where the server was started."""
    _anchor_paths(values, "agents", base)
    documents = values.get("documents")
    if isinstance(documents, dict):
        _anchor_paths(documents, "roots", base)
    store = values.get("store")
    if isinstance(store, str) and store.startswith("sqlite:") and store[7:8] not in ("", "/", "~"):
        values["store"] = f"sqlite:{base / store[7:]}"
    servers = values.get("mcp")
    for server in servers.values() if isinstance(servers, dict) else ():
        if isinstance(server, dict) and isinstance(cwd := server.get("cwd"), str):
            server["cwd"] = base / Path(cwd).expanduser()
    programs = values.get("acp")
    for program in programs.values() if isinstance(programs, dict) else ():
        if isinstance(program, dict) and isinstance(folder := program.get("workspace"), str):
            program["workspace"] = base / Path(folder).expanduser()
    spaces = values.get("workspaces")
    if isinstance(spaces, dict) and isinstance(folder := spaces.get("dir"), str):
        spaces["dir"] = base / Path(folder).expanduser()


def _anchor_paths(holder: dict[str, Any], name: str, base: Path) -> None:
    """One path, or a list of them; anything else is left for the check of the values to refuse."""
    value = holder.get(name)
    paths = [value] if isinstance(value, str) else value
    if isinstance(paths, list) and all(isinstance(p, str) for p in paths):
        holder[name] = [base / Path(p).expanduser() for p in paths]


def problem_of(error: ValidationError) -> tuple[tuple[int | str, ...], str]:
    """The first thing that is wrong: its place, and why, in words for who writes TOML or YAML."""
    first = error.errors()[0]
    return first["loc"], first["msg"].removeprefix("Value error, ").replace("valid tuple", "valid list")


def _explain(error: ValidationError, path: Path | None, named: Mapping[tuple[str, ...], str]) -> str:
    loc, why = problem_of(error)
    where = ".".join(str(p) for p in loc) or "(top level)"
    given_by = next((n for place, n in named.items() if loc[: len(place)] == place), None)
    source = f" ({given_by})" if given_by else f" in {path}" if path else ""
    if error.errors()[0]["type"] == "extra_forbidden":
        known = _known_keys(loc)
        near = difflib.get_close_matches(str(loc[-1]), known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else f" Known: {', '.join(sorted(known))}."
        return f"Unknown setting {where!r}{source}.{hint}"
    return f"Setting {where!r}{source}: {why}."


def _known_keys(loc: tuple[int | str, ...]) -> list[str]:
    model: Any = Settings
    for part in loc[:-1]:
        fields = getattr(model, "model_fields", None)
        if fields is None:
            break
        if part in fields:
            annotation = fields[part].annotation
            args = [a for a in get_args(annotation) if isinstance(a, type)]
            model = args[-1] if args and args[-1] is not type(None) else annotation
    return list(getattr(model, "model_fields", {}))
