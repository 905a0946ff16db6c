"""The OpenAPI document of the scoring API over HTTP, made from the proto: its messages are the schemas, its comments the descriptions."""

import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.rpc.status_pb2 import Status

import liveshelf.v1
from liveshelf import __version__
from serving.edge import Method
from serving.status import HTTP_CODES

_SCALARS: dict[int, dict[str, Any]] = {
    FieldDescriptor.TYPE_STRING: {"type": "string"},
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_INT32: {"type": "integer", "format": "int32"},
    FieldDescriptor.TYPE_INT64: {"type": "string", "format": "int64"},  # protobuf's JSON: a browser's numbers end at 2^53
    FieldDescriptor.TYPE_FLOAT: {"type": "number", "format": "float"},
    FieldDescriptor.TYPE_DOUBLE: {"type": "number", "format": "double"},
}
_BLOCK = re.compile(r"(?P<kind>message|service|rpc|oneof)\s+(?P<name>\w+)")
_FIELD = re.compile(r"(?:repeated |optional )?[\w.]+ (?P<name>\w+) = \d+;\s*// (?P<comment>.*)")


def document(methods: Mapping[str, Method]) -> dict[str, Any]:
    """OpenAPI 3.1 of `methods` by path."""
    comments = read_comments(files(liveshelf.v1).joinpath("recommendation.proto").read_text())
    schemas: dict[str, Any] = {}
    paths = {}
    for path, method in methods.items():
        for kind in (method.request, method.response, Status):
            _add_schema(kind.DESCRIPTOR, schemas, comments)
        paths[path] = {"post": _operation(method, comments)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Liveshelf scoring",
            "version": __version__,
            "description": f"{comments['']} Numbers of 64 bits are strings in JSON. Field names may be given in camelCase too.",
        },
        "paths": paths,
        "components": {"schemas": schemas},
    }


def read_comments(proto: str) -> dict[str, str]:
    """What the proto says of each message, field (`Message.field`) and method, and under "" of the whole.

    Comments stand above what they are of, or behind a field on its line.
    """
    comments: dict[str, str] = {}
    above: list[str] = []
    within: list[str] = []
    for line in map(str.strip, proto.splitlines()):
        if line.startswith("//"):
            above.append(line.removeprefix("//").strip())
            continue
        if line.startswith("package "):
            comments[""] = " ".join(above)
        elif match := _BLOCK.match(line):
            within_message = within if match["kind"] == "message" else []
            comments[".".join([*within_message, match["name"]])] = " ".join(above)
            if line.endswith("{"):
                within.append(match["name"] if match["kind"] == "message" else "")
        elif match := _FIELD.match(line):
            comments[".".join([*filter(None, within), match["name"]])] = match["comment"]
        elif line == "}":
            within.pop()
        above = []
    return comments


def _operation(method: Method, comments: Mapping[str, str]) -> dict[str, Any]:
    timeout = {
        "name": "Grpc-Timeout",
        "in": "header",
        "description": "The caller's deadline as gRPC spells it: 150m is 150 ms",
        "schema": {"type": "string", "pattern": "^[0-9]{1,8}[HMSmun]$"},
    }
    codes = sorted({*HTTP_CODES.values(), 413, 415} - {499, 501})
    return {
        "summary": comments[method.name],
        "operationId": method.name,
        "tags": [method.service],
        "parameters": [timeout],
        "requestBody": {"required": True, "content": {"application/json": {"schema": _ref(method.request.DESCRIPTOR)}}},
        "responses": {
            "200": _content("The answer", method.response.DESCRIPTOR),
            **{str(code): _content(_said(code), Status.DESCRIPTOR) for code in codes},
        },
    }


def _said(http_code: int) -> str:
    names = [code.name for code, mapped in HTTP_CODES.items() if mapped == http_code]
    return names[0] if names else {413: "The body is too large", 415: "Not JSON"}[http_code]


def _content(description: str, kind: Descriptor) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": _ref(kind)}}}


def _name(kind: Descriptor) -> str:
    """`Message.Nested` of our package, the full name of another's."""
    return str(kind.full_name).removeprefix("liveshelf.v1.")


def _ref(kind: Descriptor) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{_name(kind)}"}


def _add_schema(kind: Descriptor, schemas: dict[str, Any], comments: Mapping[str, str]) -> None:
    name = _name(kind)
    if name in schemas:
        return
    if name == "google.protobuf.Any":
        schemas[name] = {"type": "object", "properties": {"@type": {"type": "string"}}, "required": ["@type"]}
        return
    properties: dict[str, Any] = {}
    schemas[name] = {"type": "object", "properties": properties}
    if description := comments.get(name):
        schemas[name]["description"] = description
    for field in kind.fields:
        one = _ref(field.message_type) if field.message_type else dict(_SCALARS[field.type])
        whole = {"type": "array", "items": one} if field.is_repeated else one
        if description := comments.get(f"{name}.{field.name}"):
            whole["description"] = description
        properties[field.name] = whole
        if field.message_type:
            _add_schema(field.message_type, schemas, comments)
