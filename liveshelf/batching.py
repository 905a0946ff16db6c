"""Records → requests of a size that the collector takes: its limits are on the number of records and on the bytes of the body."""

from collections.abc import Iterable, Iterator

AROUND_BYTES = 16  # of a body, besides its records and the commas after them: `{"events":[…]}` takes 13


def batches(records: Iterable[bytes], records_max: int, bytes_max: int) -> Iterator[list[bytes]]:
    """Cut `records` into lists that each fit one request, in order. A record larger than `bytes_max` stands alone, to be refused."""
    batch: list[bytes] = []
    size = AROUND_BYTES
    for record in records:
        if batch and (len(batch) == records_max or size + len(record) + 1 > bytes_max):
            yield batch
            batch, size = [], AROUND_BYTES
        batch.append(record)
        size += len(record) + 1
    if batch:
        yield batch
