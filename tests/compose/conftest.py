"""The stack of docker-compose.yml, brought up once: for tests/compose, which `make test-compose` runs inside an engine's namespace."""

import os
from collections.abc import Iterator

import pytest

from tests.compose.stack import Compose


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("LIVESHELF_STACK") != "compose":
        for item in items:
            if "tests/compose/" in item.nodeid:
                item.add_marker(pytest.mark.skip(reason="`make test-compose` runs these, with an engine (LIVESHELF_STACK=compose)"))


@pytest.fixture(scope="session")
def compose() -> Iterator[Compose]:
    """Every service healthy, a seeded shop, a first model."""
    stack = Compose()
    stack.down()
    try:
        print(f"\nup and healthy after {stack.up():.1f} s")
        print(stack.run("ps", "--format", "table {{.Service}}\t{{.Image}}\t{{.Status}}").stdout)
        stack.seed()
        yield stack
    finally:
        stack.keep_logs()
        stack.down()
