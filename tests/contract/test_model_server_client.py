"""The scorer's client against the model servers."""

import asyncio

import numpy as np
import pytest

pytest.importorskip("tensorflow")

from liveshelf.settings import Settings
from serving.model_client import ModelClient, ModelNotFoundError, ModelUnavailableError
from tests.contract.tfserving import Model, wait_until


def settings_for(model: Model) -> Settings:
    return Settings(model_server=model.server.address, model_name=model.name)


X, ITEM = np.array([[1, 2, 3]], np.float32), np.array([b"sock"], object)


def test_client_predicts_and_lists_versions(model: Model) -> None:
    model.serve(1, 2)

    async def ask() -> None:
        async with ModelClient(settings_for(model)) as client:
            assert await client.versions() == [2, 1]
            answer = await client.predict(1, "serving_default", {"x": X, "item": ITEM}, timeout_s=10)
            assert {key: value.tolist() for key, value in answer.items()} == {"id": [2], "y": [6.0]}
            answer = await client.predict(2, "serving_default", {"x": X, "item": ITEM}, timeout_s=10, outputs=("y",))
            assert {key: value.tolist() for key, value in answer.items()} == {"y": [12.0]}
            with pytest.raises(ModelNotFoundError, match=r"Specific\(.*, 9\)"):
                await client.predict(9, "serving_default", {"x": X, "item": ITEM}, timeout_s=10)
            with pytest.raises(ModelUnavailableError, match="Missing but required") as caught:
                await client.predict(1, "serving_default", {"x": X}, timeout_s=10)
            assert caught.value.reason == "model_refused"

    asyncio.run(ask())


def test_no_request_fails_while_versions_are_swapped(model: Model) -> None:
    """Eight callers ask for the newest version they know of, while three newer ones arrive and push the older ones out."""
    model.serve(1, latest={"num_versions": 2})

    async def swap() -> list[int]:
        answered: list[int] = []
        newest, done = 1, False

        async def watch(client: ModelClient) -> None:
            nonlocal newest
            while not done:
                newest = (await client.versions())[0]
                await asyncio.sleep(0.05)

        async def call(client: ModelClient) -> None:
            while not done:
                version = newest
                answer = await client.predict(version, "serving_default", {"x": X, "item": ITEM}, timeout_s=10)
                assert answer["y"].tolist() == [6.0 * version]
                answered.append(version)

        async with ModelClient(settings_for(model)) as client:
            tasks = [asyncio.create_task(call(client)) for _ in range(8)] + [asyncio.create_task(watch(client))]
            for version in (2, 3, 4):
                await asyncio.to_thread(model.add, version)
                await asyncio.to_thread(wait_until, lambda version=version: version in answered, f"answers of {version}")
            done = True
            await asyncio.gather(*tasks)  # raises what any call raised
        return answered

    for version in (2, 3, 4):
        model.exported(version)  # made before the clock runs
    assert set(asyncio.run(swap())) == {1, 2, 3, 4}
    model.server.wait_available(model.name, {3, 4})
