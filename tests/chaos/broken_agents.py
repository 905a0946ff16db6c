"""The agents, broken on purpose: `python -m tests.chaos.broken_agents MODE`. The harness must go red on each mode."""

import sys
from typing import Any

from features.fold import Fold, event_key
from streams import agents


def no_offset_check() -> None:
    """What comes again after a crash is folded again: for it a row forgets its offset, and the event's id, which would hide most of it."""
    shopper, item = Fold.shopper, Fold.item

    def fold_shopper(self: Fold, row: Any, event: Any, partition: int, offset: int) -> Any:
        if offset <= row.offset:
            row.offset = -1
            row.seen.pop(event_key(event.event_id), None)
        return shopper(self, row, event, partition, offset)

    def fold_item(self: Fold, row: Any, touch: Any, event_name: str, weights: Any, offset: int) -> bool:
        row.offset = min(row.offset, offset - 1)
        return item(self, row, touch, event_name, weights, offset)

    Fold.shopper, Fold.item = fold_shopper, fold_item  # type: ignore[method-assign]


def commit_early() -> None:
    """A batch is committed before it is folded, and what the store says of where it stands is not listened to."""
    fold_or_reject = agents._fold_or_reject

    async def commit_first(batch: list[Any], *others: Any) -> None:
        for event in batch:
            event.ack()
        if batch:
            await batch[0].app.consumer.commit()
        await fold_or_reject(batch, *others)

    async def no_catch_up(self: Any, *_: Any) -> None: ...

    agents._fold_or_reject = commit_first
    agents.FeatureWriter._catch_up = no_catch_up  # type: ignore[method-assign]


MODES = {mode.__name__: mode for mode in (no_offset_check, commit_early)}

if __name__ == "__main__":
    MODES[sys.argv[1]]()
    agents.main()
