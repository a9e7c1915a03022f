"""Resolving models, listing what is offered, and finding local servers."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from mux.errors import ConfigError
from mux.llm.model import Model
from mux.llm.providers import Providers, probe_local_servers
from mux.settings import Price, Provider, Settings
from tests.support.endpoint import Exchange, serving

pytestmark = pytest.mark.usefixtures("no_leaks")

DEAD = "http://127.0.0.1:9/v1"  # the discard port: nothing listens


class Registered:
    closed = False

    async def aclose(self) -> None:
        self.closed = True


def registered() -> Model:
    return Registered()  # type: ignore[return-value]  # never streamed here


def providers(**given: Provider) -> Providers:
    found = Providers(Settings(providers=given, prices={"local:a": Price(input=1, output=2)}))
    found.register("rehearsal", registered())
    return found


async def listing(x: Exchange) -> None:
    await x.answer(200, b'{"object":"list","data":[{"id":"a"},{"id":"b","context_length":9000}]}')


async def test_a_spec_names_provider_and_model_and_the_model_may_have_colons() -> None:
    known = providers(local=Provider(base_url=DEAD, models=("first",)))
    assert known.model("local:qwen3:4b")[1] == "qwen3:4b"
    assert known.model("local")[1] == "first"
    assert known.model("rehearsal")[1] == "rehearsal"
    assert known.model("local:a")[0] is known.model("local:b")[0]
    await known.aclose()


@pytest.mark.parametrize("spec", ["locl:a", "nothing", ""])
async def test_an_unknown_model_lists_what_exists(spec: str) -> None:
    with pytest.raises(ConfigError) as caught:
        providers(local=Provider(base_url=DEAD)).model(spec)
    assert caught.value.code == "model_unknown"
    assert "local:MODEL" in caught.value.message
    assert "rehearsal" in caught.value.message


async def test_a_provider_without_a_model_says_how_to_name_one() -> None:
    with pytest.raises(ConfigError, match="local:MODEL"):
        providers(local=Provider(base_url=DEAD)).model("local")


async def test_settings_and_prices_are_found_by_spec() -> None:
    known = providers(local=Provider(base_url=DEAD, context_tokens=4096))
    settings = known.provider("local:a")
    assert settings is not None
    assert settings.context_tokens == 4096
    assert known.provider("rehearsal") is None
    assert known.price("local:a") == Price(input=1, output=2)
    assert known.price("local:b") is None
    known = providers(local=Provider(base_url=DEAD, models=("a",)))
    assert known.price("local") == Price(input=1, output=2), "the price of the model that the spec stands for"
    with pytest.raises(ConfigError):
        known.provider("other:a")


async def test_offers_name_what_can_be_used_and_why_the_rest_can_not() -> None:
    async with serving(listing) as server:
        known = providers(local=Provider(base_url=server.url), dead=Provider(base_url=DEAD, models=("m",)))
        offers = await known.offers()
        assert await known.offers() == offers
        await known.aclose()
    assert len(server.seen) == 1, "offers are cached"
    assert offers[0] == {"id": "rehearsal", "provider": "rehearsal", "name": "rehearsal", "available": True}
    price = {"input": 1, "output": 2, "currency": "USD"}
    assert offers[1] == {
        "id": "local:a", "provider": "local", "name": "a", "price": price, "available": True
    }  # fmt: skip
    assert offers[2]["context"] == 9000
    dead = offers[3]
    assert (dead["id"], dead["available"]) == ("dead:m", False)
    assert "refused" in dead["error"]


async def test_an_endpoint_that_answers_with_a_page_is_there_but_no_model_server() -> None:
    async def page(x: Exchange) -> None:
        await x.answer(200, b"<html>Welcome</html>")

    async with serving(page) as server:
        known = providers(local=Provider(base_url=server.url, models=("a",)))
        with capture_logs() as logs:
            offers = await known.offers()
        await known.aclose()
    (offer,) = (o for o in offers if o["provider"] == "local" and o["name"] == "a")
    assert "no list of models" in offer["error"]
    assert known.listed("local") == ()
    assert not [line for line in logs if line["log_level"] == "warning"], "nothing of ours failed"


async def test_local_servers_are_found_by_asking_them() -> None:
    async def silent(x: Exchange) -> None:
        await x.gone()

    async with serving(listing) as there, serving(silent) as hanging:
        found = await probe_local_servers(
            {"ollama": there.url, "vllm": DEAD, "lmstudio": hanging.url}, deadline_s=0.3
        )
    assert found == [{"name": "ollama", "base_url": there.url, "models": ["a", "b"]}]


async def test_closing_closes_every_model() -> None:
    known = Providers(Settings())
    model = Registered()
    known.register("rehearsal", model)  # type: ignore[arg-type]  # never streamed here
    await known.aclose()
    assert model.closed
