"""Every configured endpoint by name: resolves ``provider:model``, lists what is offered."""

from __future__ import annotations

import asyncio
import difflib
import time
from collections.abc import Callable
from typing import Any

from mux.errors import ConfigError, UpstreamError
from mux.llm.model import Model
from mux.llm.upstream import HttpModel
from mux.settings import Price, Provider, Settings

__all__ = ["LOCAL_SERVERS", "Providers", "probe_local_servers"]

OFFERS_TTL_S = 30.0
OFFERS_DEADLINE_S = 2.0

# name → base URL, as each server uses when nothing is configured
LOCAL_SERVERS: dict[str, str] = {
    "ollama": "http://127.0.0.1:11434/v1",
    "lmstudio": "http://127.0.0.1:1234/v1",
    "llamacpp": "http://127.0.0.1:8080/v1",
    "vllm": "http://127.0.0.1:8000/v1",
}


class Providers:
    """The endpoints of one configuration.

    Args:
        settings: ``providers``, ``prices`` and the default model.
        clock: monotonic seconds, for the cache of offers.
    """

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._registered: dict[str, Model] = {}
        self._models: dict[str, HttpModel] = {}
        self._offers: tuple[float, list[dict[str, Any]]] | None = None
        self._listed: dict[str, tuple[str, ...]] = {}
        self._asking = asyncio.Lock()

    def register(self, name: str, model: Model) -> None:
        """Add a model that is no HTTP endpoint (the rehearsal model) under a name of its own."""
        self._registered[name] = model

    def model(self, spec: str) -> tuple[Model, str]:
        """Resolve a model.

        Args:
            spec: ``provider:model``, a provider's name (its first configured model), or a registered name.

        Returns:
            The endpoint and its name for the model.

        Raises:
            ConfigError: ``model_unknown``, listing what exists.
        """
        name, _, model = spec.partition(":")
        if name in self._registered:
            return self._registered[name], model or name
        provider = self._settings.providers.get(name)
        if provider is None:
            raise self._unknown(spec)
        if not model:
            if not provider.models:
                raise ConfigError(
                    "model_unknown",
                    f"{spec!r} names a provider without a model: say {name}:MODEL, or set"
                    f" providers.{name}.models.",
                )
            model = provider.models[0]
        return self._endpoint(name, provider), model

    def provider(self, spec: str) -> Provider | None:
        """The settings of a model's provider; ``None`` where it has none (registered models).

        Raises:
            ConfigError: ``model_unknown``.
        """
        name = spec.partition(":")[0]
        if name in self._registered:
            return None
        if (provider := self._settings.providers.get(name)) is None:
            raise self._unknown(spec)
        return provider

    def price(self, spec: str) -> Price | None:
        """What a model costs by ``prices``. Where it names none, the turn's usage may carry its cost already:
        reported by the endpoint, or by the price library (see :mod:`mux.llm.prices`)."""
        name, _, model = spec.partition(":")
        provider = self._settings.providers.get(name)
        if not model and provider is not None and provider.models:
            spec = f"{name}:{provider.models[0]}"  # as `model` reads it
        return self._settings.prices.get(spec)

    def opened(self) -> dict[str, int]:
        """How often the circuit of each endpoint in use opened."""
        return {name: model.circuit.opened for name, model in self._models.items()}

    def errors(self) -> dict[tuple[str, ...], int]:
        """Requests that failed, by endpoint and the error's code."""
        return {
            (name, code): count
            for name, model in self._models.items()
            for code, count in model.circuit.errors.items()
        }

    async def offers(self) -> list[dict[str, Any]]:
        """The models that can be used now: ``{id, provider, name, context?, price?, available, error?}``.

        Endpoints are asked side by side, each with a short deadline; the answer is kept for half a minute.
        """
        async with self._asking:
            if self._offers is None or self._clock() - self._offers[0] > OFFERS_TTL_S:
                asked = await asyncio.gather(*(self._offered(n) for n in self._settings.providers))
                found = [{"id": n, "provider": n, "name": n, "available": True} for n in self._registered]
                self._offers = (self._clock(), found + [o for some in asked for o in some])
            return [dict(o) for o in self._offers[1]]

    def listed(self, name: str) -> tuple[str, ...]:
        """The models that an endpoint's ``/models`` named when `offers` last asked it; empty if none."""
        return self._listed.get(name, ())

    async def aclose(self) -> None:
        """Close every endpoint."""
        models = [*self._models.values(), *self._registered.values()]
        self._models.clear()
        await asyncio.gather(*(m.aclose() for m in models))

    def _endpoint(self, name: str, provider: Provider) -> HttpModel:
        model = self._models.get(name)
        if model is None:
            own = frozenset(s.partition(":")[2] for s in self._settings.prices if s.startswith(f"{name}:"))
            model = self._models[name] = HttpModel(name, provider, priced=own)
        return model

    async def _offered(self, name: str) -> list[dict[str, Any]]:
        provider = self._settings.providers[name]
        error: str | None = None
        listed: list[dict[str, Any]] = []
        try:
            listed = await self._endpoint(name, provider).models(OFFERS_DEADLINE_S)
        except UpstreamError as e:
            error = e.message
        names = {m["id"]: m for m in listed}
        self._listed[name] = tuple(names)
        wanted = list(dict.fromkeys([*provider.models, *self._named_models(name), *names]))
        offers: list[dict[str, Any]] = []
        for model in wanted:
            offer: dict[str, Any] = {"id": f"{name}:{model}", "provider": name, "name": model}
            context = provider.context_tokens or names.get(model, {}).get("context")
            if context:
                offer["context"] = context
            if (price := self.price(offer["id"])) is not None:
                offer["price"] = price.model_dump(exclude_none=True)
            offer["available"] = error is None
            if error is not None:
                offer["error"] = error
            offers.append(offer)
        if not offers:
            offers.append({"id": name, "provider": name, "name": name, "available": False})
            offers[0]["error"] = error or "The endpoint lists no models."
        return offers

    def _named_models(self, name: str) -> list[str]:
        """Models of a provider that the configuration names elsewhere."""
        default = self._settings.default_model()
        specs = [default, *self._settings.prices]
        return [s.partition(":")[2] for s in specs if s.startswith(f"{name}:")]

    def _unknown(self, spec: str) -> ConfigError:
        known = [*self._registered, *(f"{n}:MODEL" for n in self._settings.providers)]
        name = spec.partition(":")[0]
        near = difflib.get_close_matches(name, [*self._registered, *self._settings.providers], n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        there = ", ".join(known) or "none: configure [providers.NAME] in mux.toml"
        return ConfigError("model_unknown", f"There is no model {spec!r}.{hint} There are: {there}.")


async def probe_local_servers(
    servers: dict[str, str] | None = None, *, deadline_s: float = 0.75
) -> list[dict[str, Any]]:
    """Look for model servers on their usual ports of this machine.

    Returns:
        ``{name, base_url, models}`` of each that answered ``/models`` with a list, in a fixed order.
    """

    async def probe(name: str, base_url: str) -> dict[str, Any] | None:
        endpoint = HttpModel(name, Provider(base_url=base_url), env={})
        try:
            models = await endpoint.models(deadline_s)
        except UpstreamError:
            return None  # not there, which is the usual case
        finally:
            await endpoint.aclose()
        return {"name": name, "base_url": base_url, "models": [m["id"] for m in models]}

    found = await asyncio.gather(*(probe(n, u) for n, u in (servers or LOCAL_SERVERS).items()))
    return [f for f in found if f is not None]
