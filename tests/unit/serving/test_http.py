"""The scoring API as JSON over HTTP: the same messages, errors as google.rpc.Status, CORS, hang-ups, and its OpenAPI document."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from liveshelf.v1 import recommendation_pb2 as pb
from serving import query
from tests.scoring_api import Api, TellableShelves, scoring_api, until


def over_http(
    tmp_path: Path, ask: Callable[[Api], Awaitable[Any]], shelves: TellableShelves | None = None, **changes: object
) -> Any:
    async def run() -> Any:
        async with scoring_api(tmp_path, shelves, **changes) as api:
            return await ask(api)

    return asyncio.run(run())


def test_a_shelf_as_json_is_the_protos(tmp_path: Path) -> None:
    """snake_case and camelCase are taken, snake_case is answered, and fields at their defaults are there."""

    async def ask(api: Api) -> list[dict[str, Any]]:
        bodies = [
            {"shopper": {"client_id": "c"}, "count": 2, "exclude_item_ids": ["y"], "with_timings": True},
            {"shopper": {"clientId": "c"}, "count": 2, "excludeItemIds": ["y"], "filters": {"priceMin": 5}},
        ]
        answers = [await api.http.post("/v1/recommend", json=body) for body in bodies]
        assert api.shelves.asked[0].exclude == api.shelves.asked[1].exclude == {"y"}
        assert api.shelves.asked[1].filters == query.Filters(price_min=5)
        return [answer.json() for answer in answers]

    with_timings, plain = over_http(tmp_path, ask)
    assert [item["item_id"] for item in plain["items"]] == ["i0", "i1"]
    assert (plain["request_id"], plain["model_version"], plain["degraded"], plain["timings"]) == ("r2", "7", False, [])
    assert [timing["stage"] for timing in with_timings["timings"]] == ["hydrate", "score", "total"]


def test_every_call_has_its_path(tmp_path: Path) -> None:
    async def ask(api: Api) -> None:
        shopper = {"shopper": {"client_id": "c"}}
        bodies = {
            "/v1/rank": shopper | {"item_ids": ["b", "a"]},
            "/v1/similar-items": {"item_id": "i0", "count": 1},
            "/v1/batch-recommend": {"requests": [shopper, {}]},
            "/v1/batch-rank": {"requests": [shopper | {"item_ids": ["a"]}]},
            "/v1/batch-similar-items": {"requests": [{"item_id": "i0"}]},
            "/v1/record-events": {"events": [{"name": "view_item", "client_id": "c", "items": [{"item_id": "a"}]}]},
        }
        answers = {path: await api.http.post(path, json=body) for path, body in bodies.items()}
        assert {path: answer.status_code for path, answer in answers.items()} == dict.fromkeys(bodies, 200)
        assert [item["item_id"] for item in answers["/v1/rank"].json()["items"]] == ["b", "a"]
        first, second = answers["/v1/batch-recommend"].json()["results"]
        assert len(first["response"]["items"]) == 10
        assert second["error"]["code"] == 3
        assert second["error"]["details"][0]["@type"] == "type.googleapis.com/google.rpc.BadRequest"
        assert len(api.producer.log["clickstream"]) == 1

    over_http(tmp_path, ask)


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "http", "grpc", "said"),
    [
        ("POST", "/v1/recommend", b"{}", {}, 400, 3, "shopper: got no id"),
        ("POST", "/v1/recommend", b"{", {}, 400, 3, "the body is no liveshelf.v1.RecommendRequest"),
        ("POST", "/v1/recommend", b'{"shoper": 1}', {}, 400, 3, "shoper"),
        ("POST", "/v1/recommend", b"{}", {"grpc-timeout": "soon"}, 400, 3, "Grpc-Timeout: got 'soon'"),
        ("POST", "/v1/recommend", b"{}", {"content-type": "text/html"}, 415, 3, "text/html"),
        ("POST", "/v1/recommend", b" " * (4 * 2**20 + 1), {}, 413, 3, "larger than"),
        ("POST", "/v1/similar-items", b'{"item_id": "nobody"}', {}, 404, 5, "nobody"),
        ("POST", "/v1/nothing", b"{}", {}, 404, 5, "openapi"),
        ("GET", "/v1/recommend", b"", {}, 405, 12, "GET /v1/recommend"),
    ],
)
def test_an_error_is_a_status_with_its_http_code(
    tmp_path: Path, method: str, path: str, body: bytes, headers: dict[str, str], http: int, grpc: int, said: str
) -> None:
    async def ask(api: Api) -> httpx.Response:
        return await api.http.request(method, path, content=body, headers=headers)

    answer = over_http(tmp_path, ask)
    assert answer.status_code == http
    assert answer.json()["code"] == grpc
    assert said in answer.json()["message"]


def test_too_much_under_way_is_429_with_retry_after(tmp_path: Path) -> None:
    async def ask(api: Api) -> httpx.Response:
        with api.admission.slot():
            return await api.http.post("/v1/recommend", json={"shopper": {"client_id": "c"}})

    answer = over_http(tmp_path, ask, scoring_concurrency_max=1)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    assert {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retry_delay": "0.100s"} in answer.json()["details"]


def test_a_deadline_and_a_hang_up_stop_the_work(tmp_path: Path) -> None:
    async def for_ever(_: query.Query, __: float) -> None:
        await asyncio.Event().wait()

    async def ask(api: Api) -> None:
        body = {"shopper": {"client_id": "c"}}
        late = await api.http.post("/v1/recommend", json=body, headers={"grpc-timeout": "50m"})
        assert (late.status_code, late.json()["code"]) == (504, 4)
        assert api.admission.under_way == 0
        call = asyncio.create_task(api.http.post("/v1/recommend", json=body))
        await until(lambda: api.shelves.started == 2)
        call.cancel()
        await until(lambda: api.admission.under_way == 0)
        assert api.shelves.finished == 0

    over_http(tmp_path, ask, TellableShelves(for_ever))


def test_a_page_of_any_origin_may_ask(tmp_path: Path) -> None:
    """Preflight, answers and errors carry CORS headers; a simple text/plain post needs no preflight."""

    async def ask(api: Api) -> None:
        origin = {"origin": "https://shop.example"}
        preflight = await api.http.options(
            "/v1/recommend", headers=origin | {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}
        )  # fmt: skip
        assert preflight.status_code == 200
        assert "content-type" in preflight.headers["access-control-allow-headers"]
        assert "POST" in preflight.headers["access-control-allow-methods"]
        simple = await api.http.post(
            "/v1/recommend", content='{"shopper": {"client_id": "c"}}', headers=origin | {"content-type": "text/plain"}
        )
        refused = await api.http.post("/v1/recommend", content="{}", headers=origin)
        assert (simple.status_code, refused.status_code) == (200, 400)
        for answer in (preflight, simple, refused):
            assert answer.headers["access-control-allow-origin"] == "https://shop.example"

    over_http(tmp_path, ask)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["shopper", "client_id", "count", "filters", "price_min", "item_ids", "items", "events", "x"]), inner),
    max_leaves=8,
)  # fmt: skip


def test_no_json_is_an_internal_error(tmp_path: Path) -> None:
    seen: set[int] = set()
    with asyncio.Runner() as runner:
        stack = scoring_api(tmp_path)
        api = runner.run(stack.__aenter__())

        @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
        @given(JSON, st.sampled_from(["/v1/recommend", "/v1/rank", "/v1/record-events", "/v1/batch-rank"]))
        def exchange(value: Any, path: str) -> None:
            answer = runner.run(api.http.post(path, content=json.dumps(value)))
            assert answer.status_code in (200, 400), (value, answer.text)
            seen.add(answer.status_code)

        exchange()
        for body in (b"[" * 100_000, b'{"shopper":' * 2_000, b'"\\ud800"', b'{"shopper": {"client_id": "\\ud800"}}', b"\xff"):
            assert runner.run(api.http.post("/v1/recommend", content=body)).status_code == 400, body[:50]
        runner.run(stack.__aexit__(None, None, None))
    assert 400 in seen


def test_the_openapi_document_describes_every_call_and_field(tmp_path: Path) -> None:
    async def ask(api: Api) -> dict[str, Any]:
        return (await api.http.get("/openapi.json")).json()  # type: ignore[no-any-return]

    document = over_http(tmp_path, ask)
    assert len(document["paths"]) == 7
    schemas = document["components"]["schemas"]
    for path, item in document["paths"].items():
        assert item["post"]["summary"], path
        assert item["post"]["responses"]["429"]["content"]["application/json"]["schema"]["$ref"].endswith("google.rpc.Status")
    assert set(re.findall(r"#/components/schemas/([\w.]+)", json.dumps(document))) <= set(schemas)
    assert set(schemas["RecommendRequest"]["properties"]) == {field.name for field in pb.RecommendRequest.DESCRIPTOR.fields}
    assert schemas["BatchRecommendResponse.Result"]["properties"]["error"]["description"] == "it failed, as it would have alone"
    assert schemas["RecommendRequest"]["properties"]["count"] == {
        "type": "integer",
        "format": "int32",
        "description": "how many items, 1 to 100; 0 means 10",
    }
