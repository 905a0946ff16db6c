"""Requests of a size that the collector takes."""

import pytest

from liveshelf.batching import batches


@pytest.mark.parametrize("bytes_max", [1_000, 4_096, 1_000_000])
def test_batches_keep_order_and_limits(bytes_max: int) -> None:
    records = [b"x" * (n % 900) for n in range(3_000)]
    cut = list(batches(iter(records), 500, bytes_max))
    assert [record for batch in cut for record in batch] == records
    assert max(map(len, cut)) <= 500
    bodies = [len(b'{"events":[' + b",".join(batch) + b"]}") for batch in cut]
    assert max(bodies) <= bytes_max
    assert len(cut) <= 1 + max(len(records) / 500, 2 * sum(map(len, records)) / bytes_max), "no more requests than needed"


def test_record_too_large_for_any_request_stands_alone() -> None:
    assert list(batches([b"a", b"x" * 100, b"b"], 10, 50)) == [[b"a"], [b"x" * 100], [b"b"]]


def test_nothing_is_no_request() -> None:
    assert list(batches([], 10, 50)) == []
