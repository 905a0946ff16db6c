"""The collector's OpenAPI document, made from the types that decode its requests and encode its answers."""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec

from liveshelf.settings import Settings
from streams.wire import Answer, CatalogEnvelope, Envelope, Failure, WireCatalogItem, WireEvent

REF = "#/components/schemas/{name}"


def document(settings: Settings) -> dict[str, Any]:
    """OpenAPI 3.1 of one collector; its limits are those of the settings."""
    kinds = [WireEvent, Envelope, WireCatalogItem, CatalogEnvelope, Answer, Failure]
    _, schemas = msgspec.json.schema_components(kinds, ref_template=REF)
    # The decoder takes the records of an envelope one by one, so to msgspec their types are raw JSON.
    schemas["Envelope"]["properties"]["events"]["items"] = _ref("WireEvent")
    schemas["CatalogEnvelope"]["properties"]["items"]["items"] = _ref("WireCatalogItem")
    for name, field in (("Envelope", "events"), ("CatalogEnvelope", "items")):
        schemas[name]["properties"][field] |= {"minItems": 1, "maxItems": settings.events_per_request_max}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Liveshelf collector",
            "version": _version(),
            "description": _about(settings),
        },
        "paths": {
            "/v1/events": {"post": _post("Send events", "sendEvents", "WireEvent", "Envelope", settings)},
            "/v1/catalog": {"post": _post("Send catalog items", "sendCatalog", "WireCatalogItem", "CatalogEnvelope", settings)},
            "/healthz": {"get": _get("Whether the process runs", "health", {"200": "It does"})},
            "/readyz": {"get": _get("Whether events are taken", "ready", {"200": "They are", "503": "Kafka does not answer"})},
            "/metrics": {"get": _get("Prometheus metrics", "metrics", {"200": "The text format"}, "text/plain")},
        },
        "components": {"schemas": schemas},
    }


def _about(settings: Settings) -> str:
    age = f"more than {settings.event_age_max_h} hours ago (`too_old`) or " if settings.event_age_max_h else ""
    return (
        "Takes a shop's clickstream events and catalog. Ids of people are replaced by keyed pseudonyms on arrival. "
        "Give each event an `event_id`: re-sent within 24 hours, by a browser or after a 429 or 503, it counts once. "
        f"Events that happened {age}more than {settings.event_future_tolerance_s} s from now (`in_the_future`) are refused; others may "
        "come late and in any order. A `login` event links an anonymous browser (`client_id`) with the person (`user_id`)."
    )


def _post(summary: str, operation: str, one: str, many: str, settings: Settings) -> dict[str, Any]:
    batch = {"type": "array", "items": _ref(one), "minItems": 1, "maxItems": settings.events_per_request_max}
    schema = {"anyOf": [_ref(one), batch, _ref(many)]}
    refused = {
        "413": f"Over {settings.event_body_bytes_max} bytes or {settings.events_per_request_max} records",
        "415": "Neither application/json nor text/plain",
        "429": "Too many records await Kafka's acknowledgement; try again after Retry-After seconds",
        "503": "Kafka did not acknowledge; send the same body again after Retry-After seconds",
    }
    retry_after = {"Retry-After": {"description": "Seconds to wait", "schema": {"type": "integer"}}}
    return {
        "summary": summary,
        "operationId": operation,
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": schema}, "text/plain": {"schema": {"type": "string"}}},
        },
        "responses": {
            "202": _answer("At least one record was accepted and is in Kafka; `rejected` names the others", "Answer"),
            "400": _answer("No record was accepted; `rejected` says why", "Answer"),
            **{code: _answer(text, "Failure") for code, text in refused.items()},
            "429": _answer(refused["429"], "Failure") | {"headers": retry_after},
            "503": _answer(refused["503"], "Failure") | {"headers": retry_after},
        },
    }


def _get(summary: str, operation: str, responses: dict[str, str], media: str = "application/json") -> dict[str, Any]:
    content = {media: {"schema": {"type": "string" if media == "text/plain" else "object"}}}
    return {
        "summary": summary,
        "operationId": operation,
        "responses": {code: {"description": text, "content": content} for code, text in responses.items()},
    }


def _answer(description: str, kind: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": _ref(kind)}}}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": REF.format(name=name)}


def _version() -> str:
    try:
        return version("liveshelf")
    except PackageNotFoundError:  # run from a checkout
        return "0"
