"""The wire contract: what was released keeps its numbers, every field is documented, and the lines for other languages work."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from liveshelf.v1 import recommendation_pb2 as pb
from serving.openapi import read_comments

REPOSITORY = Path(__file__).parents[2]
PROTO = REPOSITORY / "liveshelf" / "v1" / "recommendation.proto"

RELEASED = {
    "Shopper": "user_id client_id session_id",
    "RecommendRequest": "shopper count placement context_item_ids exclude_item_ids",
    "RankRequest": "shopper item_ids placement",
    "SimilarItemsRequest": "item_id count",
    "ScoredItem": "item_id position score click cart purchase candidate_source propensity title category brand price",
    "RecommendResponse": "request_id items model_version feature_version degraded degraded_reason features_offset",
    "RankResponse": "request_id items model_version feature_version degraded degraded_reason",
    "SimilarItemsResponse": "items",
}
"""Message → its fields in 0.1, numbered from 1."""


@pytest.mark.parametrize("message", RELEASED)
def test_released_fields_keep_their_numbers(message: str) -> None:
    descriptor = pb.DESCRIPTOR.message_types_by_name[message]
    for number, name in enumerate(RELEASED[message].split(), 1):
        assert descriptor.fields_by_number[number].name == name


def test_a_request_of_the_first_release_is_read_as_it_was_meant() -> None:
    """Bytes as 0.1's client sent them: shopper.client_id "c", count 3, placement "home", context "x", exclude "y"."""
    sent = bytes.fromhex("0a03120163") + b"\x10\x03" + b"\x1a\x04home" + b"\x22\x01x" + b"\x2a\x01y"
    assert pb.RecommendRequest.FromString(sent) == pb.RecommendRequest(
        shopper=pb.Shopper(client_id="c"), count=3, placement="home", context_item_ids=["x"], exclude_item_ids=["y"]
    )


def test_every_message_method_and_field_is_documented() -> None:
    comments = read_comments(PROTO.read_text())
    undocumented = []
    for service in pb.DESCRIPTOR.services_by_name.values():
        undocumented += [name for name in (service.name, *(m.name for m in service.methods)) if not comments.get(name)]
    messages = list(pb.DESCRIPTOR.message_types_by_name.values())
    for message in messages:
        messages += message.nested_types
        name = message.full_name.removeprefix("liveshelf.v1.")
        undocumented += [f"{name}.{field.name}" for field in message.fields if not comments.get(f"{name}.{field.name}")]
        if not name.endswith(("Request", "Response")):  # these are their methods'
            undocumented += [name] * (not comments.get(name))
    assert undocumented == []


def test_the_readmes_protoc_line_makes_code_that_imports(tmp_path: Path) -> None:
    """The line itself, run from a checkout with its output in a directory of one's own."""
    (line,) = re.findall(r"^python -m grpc_tools\.protoc .*$", (REPOSITORY / "README.md").read_text(), re.MULTILINE)
    line = re.sub(r"\bpython ", f"{sys.executable} ", line).replace("OUT", str(tmp_path))
    subprocess.run(["bash", "-euc", line], cwd=REPOSITORY, check=True, capture_output=True)
    check = "from liveshelf.v1 import recommendation_pb2_grpc as g, recommendation_pb2 as p; g.EventServiceStub; p.Event(name='x')"
    made = subprocess.run(
        [sys.executable, "-c", check], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
