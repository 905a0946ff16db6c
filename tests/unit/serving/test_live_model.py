"""Which model answers, and with whose features: a scorer's own parts against a model server that notes what it was asked."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import msgspec
import numpy as np
import pytest

from features.declarations import default_text, parse_declarations
from features.encoder import Encoder, Inputs
from features.feature_set import FeatureSet
from features.items import ItemTable
from features.rows import ShopperRow
from liveshelf.settings import Settings
from serving import tfserving_pb2 as pb
from serving.candidates import default_sources
from serving.live_model import ModelFollower
from serving.model_client import AVAILABLE, ModelClient
from serving.query import Query
from serving.shelf import ShelfMaker, Side
from serving.tensors import decode_tensor, encode_tensor
from streams.records import Impression, decode, encode
from tests.planted_shop import FEATURES, PlantedShop

OTHER = FeatureSet(parse_declarations(default_text().replace("half_lives: [1d, 14d]", "half_lives: [1d]"), "other"))
"""Another feature version, with fewer shopper features."""


class Asked(NamedTuple):
    version: int
    signature: str
    inputs: Inputs


class ModelServer:
    """Speaks TensorFlow Serving's protocol; `trained_on` are its models: version → feature version, "" for one that cannot say.

    `rank` prefers the candidates that come last; `retrieve` finds nothing. `meanwhile` runs inside the next `retrieve`.
    """

    def __init__(self, trained_on: dict[int, str]) -> None:
        self.trained_on = trained_on
        self.asked: list[Asked] = []
        self.labels: dict[str, int] = {}
        self.configured: list[Any] = []
        self.meanwhile: Callable[[], Awaitable[None]] | None = None

    async def predict(self, data: bytes, context: grpc.aio.ServicerContext) -> bytes:
        request = pb.PredictRequest.FromString(data)
        version, signature = request.model_spec.version.value, request.model_spec.signature_name
        if version not in self.trained_on:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such version")
        inputs = {name: decode_tensor(tensor) for name, tensor in request.inputs.items()}
        if signature == "describe":
            if not self.trained_on[version]:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no signature named describe")
            return answer(feature_version=np.array([self.trained_on[version].encode()], dtype=object))
        self.asked.append(Asked(version, signature, inputs))
        if signature == "retrieve":
            meanwhile, self.meanwhile = self.meanwhile, None
            if meanwhile:
                await meanwhile()
            return answer(item=np.full((1, 1), b"", dtype=object))
        chances = np.linspace(0.1, 0.9, inputs["candidates"].shape[1], dtype=np.float32)[None]
        return answer(click=chances, cart=chances / 10, purchase=chances / 100)

    async def status(self, _: bytes, context: grpc.aio.ServicerContext) -> bytes:
        response = pb.GetModelStatusResponse()
        for version in self.trained_on:
            response.model_version_status.add(version=version, state=AVAILABLE)
        return bytes(response.SerializeToString())

    async def metadata(self, data: bytes, context: grpc.aio.ServicerContext) -> bytes:
        label = pb.GetModelMetadataRequest.FromString(data).model_spec.version_label
        if label not in self.labels:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"Unrecognized servable version label: {label}")
        response = pb.GetModelMetadataResponse()
        response.model_spec.version.value = self.labels[label]
        return bytes(response.SerializeToString())

    async def reload(self, data: bytes, _: grpc.aio.ServicerContext) -> bytes:
        self.configured.extend(pb.ReloadConfigRequest.FromString(data).config.model_config_list.config)
        return bytes(pb.ReloadConfigResponse().SerializeToString())


def answer(**outputs: Any) -> bytes:
    response = pb.PredictResponse()
    for name, array in outputs.items():
        encode_tensor(array, response.outputs[name])
    return bytes(response.SerializeToString())


@asynccontextmanager
async def following(server: ModelServer, loaded: set[str], model_path: Path | None = None) -> AsyncIterator[ModelFollower]:
    """A follower of `server`; features are at hand when their version is in `loaded`."""
    grpc_server = grpc.aio.server()
    for service, method, behaviour in (
        ("PredictionService", "Predict", server.predict),
        ("PredictionService", "GetModelMetadata", server.metadata),
        ("ModelService", "GetModelStatus", server.status),
        ("ModelService", "HandleReloadConfigRequest", server.reload),
    ):
        handler = grpc.method_handlers_generic_handler(
            f"tensorflow.serving.{service}", {method: grpc.unary_unary_rpc_method_handler(behaviour)}
        )
        grpc_server.add_generic_rpc_handlers((handler,))
    port = grpc_server.add_insecure_port("127.0.0.1:0")
    await grpc_server.start()
    try:
        async with ModelClient(Settings(model_server=f"127.0.0.1:{port}")) as client:
            yield ModelFollower(client, 5.0, lambda version: version in loaded, model_path)
    finally:
        await grpc_server.stop(None)


class Rows:
    """The planted shop's rows, as a store that answers at once."""

    def __init__(self, shop: PlantedShop) -> None:
        self._shop = shop

    async def shopper(self, shopper: str, features: FeatureSet) -> ShopperRow | None:
        row = self._shop.rows[shopper] if features is FEATURES else None
        return msgspec.json.decode(msgspec.json.encode(row), type=ShopperRow) if row else None


def maker_of(shop: PlantedShop, models: ModelFollower, log: Callable[[Impression], None]) -> ShelfMaker:
    sides = {FEATURES.version: Side(FEATURES, shop.table), OTHER.version: Side(OTHER, ItemTable(OTHER))}
    for item in shop.catalog():
        sides[OTHER.version].items.apply_catalog(item)
    return ShelfMaker(
        Rows(shop),  # type: ignore[arg-type]
        lambda version: sides[version or FEATURES.version],
        models,
        default_sources(),
        log,
        5.0,
        lambda: shop.time_ms + 777,
    )


@pytest.fixture(scope="module")
def shop() -> PlantedShop:
    shop = PlantedShop()
    shop.events(600)
    return shop


def query(shop: PlantedShop, **changes: Any) -> Query:
    return Query(**{"shopper": shop.shoppers[0], "session": "", "placement": "home", "count": 10, **changes})


def test_a_model_whose_features_are_not_loaded_waits_and_the_one_before_goes_on() -> None:
    server, loaded = ModelServer({1: FEATURES.version}), {FEATURES.version}

    async def run() -> None:
        async with following(server, loaded) as models:
            await models.refresh()
            assert models.live is not None
            assert (models.live.version, models.live.feature_version) == (1, FEATURES.version)
            server.trained_on[2] = OTHER.version
            await models.refresh()
            assert models.live.version == 1
            loaded.add(OTHER.version)
            await models.refresh()
            assert (models.live.version, models.live.feature_version) == (2, OTHER.version)

    asyncio.run(run())


@pytest.mark.parametrize("newest", [OTHER.version, ""])
def test_a_scorer_that_starts_meanwhile_takes_the_newest_that_it_can_serve(newest: str) -> None:
    """Also past one that does not say what it was trained on."""

    async def run() -> None:
        async with following(ModelServer({1: FEATURES.version, 2: FEATURES.version, 3: newest}), {FEATURES.version}) as models:
            await models.refresh()
            assert models.live is not None
            assert models.live.version == 2

    asyncio.run(run())


def test_shelves_say_that_features_are_not_loaded_when_there_is_no_other_model(shop: PlantedShop) -> None:
    server = ModelServer({1: FEATURES.version})

    async def run() -> None:
        async with following(server, {FEATURES.version}) as models:
            maker = maker_of(shop, models, lambda _: None)
            await models.refresh()
            assert (await maker.shelf(query(shop), 5.0)).degraded == ""
            server.trained_on = {2: OTHER.version}
            await models.refresh()
            shelf = await maker.shelf(query(shop), 5.0)
            assert (shelf.degraded, shelf.model_version, shelf.feature_version) == ("features_not_loaded", 0, FEATURES.version)
            assert len(shelf.items) == 10
            server.trained_on = {}
            await models.refresh()
            assert (await maker.shelf(query(shop), 5.0)).degraded == "no_model"

    asyncio.run(run())


def test_a_request_keeps_its_model_and_features_while_another_model_comes(shop: PlantedShop) -> None:
    """The new model is live between the request's retrieval and its ranking; the request goes on with what it began with."""
    server, logged = ModelServer({1: FEATURES.version}), list[Impression]()

    async def run() -> None:
        async with following(server, {FEATURES.version, OTHER.version}) as models:

            async def swap() -> None:
                server.trained_on[2] = OTHER.version
                await models.refresh()
                assert models.live is not None
                assert models.live.version == 2

            await models.refresh()
            maker = maker_of(shop, models, logged.append)
            server.meanwhile = swap
            shelves = [await maker.shelf(query(shop, context=("i1",)), 5.0) for _ in range(2)]
            await asyncio.sleep(0)
            assert [(s.model_version, s.feature_version) for s in shelves] == [(1, FEATURES.version), (2, OTHER.version)]
            assert [s.degraded for s in shelves] == ["", ""]

    asyncio.run(run())
    assert [(asked.version, asked.signature) for asked in server.asked] == [
        (1, "retrieve"),
        (1, "rank"),
        (2, "retrieve"),
        (2, "rank"),
    ]
    for asked in server.asked:
        features = {1: FEATURES, 2: OTHER}[asked.version]
        assert asked.inputs["shopper_features"].shape == (1, len(features.shopper_columns))
    assert [(i.model_version, i.features.version) for i in logged] == [(1, FEATURES.version), (2, OTHER.version)]


def test_features_as_logged_decode_bit_for_bit_to_what_the_model_was_sent(shop: PlantedShop) -> None:
    """Through the impression's JSON. Learning adds to it where each item stood on the shelf, and nothing else."""
    server, logged = ModelServer({1: FEATURES.version}), list[Impression]()

    async def run() -> None:
        async with following(server, {FEATURES.version}) as models:
            await models.refresh()
            maker = maker_of(shop, models, logged.append)
            for shopper in shop.shoppers[:5]:
                await maker.shelf(query(shop, shopper=shopper, context=("i1",)), 5.0)
            await asyncio.sleep(0)

    asyncio.run(run())
    encoder, position = Encoder(FEATURES), FEATURES.candidate_columns.index("shown_at")
    ranked = [asked.inputs for asked in server.asked if asked.signature == "rank"]
    assert len(logged) == len(ranked) == 5
    for impression, sent in zip(logged, ranked, strict=True):
        read = decode(Impression, encode(impression))
        inputs = encoder.decode(read.features)
        candidates = sent["candidates"][0].tolist()
        rows = [candidates.index(item.encode()) for item in read.items]
        assert rows[0] == len(candidates) - 1, "the shelf is in another order than the candidates"
        assert len(rows) == 10 < len(candidates)
        expected = {name: array[0] for name, array in sent.items()}
        expected |= {name: expected[name][rows] for name in ("candidates", "candidate_features")}
        assert inputs.keys() == expected.keys()
        for name, array in expected.items():
            assert inputs[name].dtype == array.dtype, name
            assert inputs[name].tolist() == array.tolist(), name
            assert array.dtype == object or inputs[name].tobytes() == np.ascontiguousarray(array).tobytes(), name
        assert np.count_nonzero(inputs["shopper_features"]) > 3, "a test of zeros would prove nothing"
        assert np.count_nonzero(inputs["candidate_features"].any(axis=0)) > 5
        learnt = encoder.shown(inputs)
        assert learnt["candidate_features"][:, position].tolist() == np.log1p(np.arange(10)).astype(np.float32).tolist()
        assert not inputs["candidate_features"][:, position].any()
        same = [i for i in range(len(FEATURES.candidate_columns)) if i != position]
        assert np.array_equal(learnt["candidate_features"][:, same], inputs["candidate_features"][:, same])
        assert all(learnt[name] is inputs[name] for name in inputs if name != "candidate_features")
