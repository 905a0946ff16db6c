"""When which part is hit, by progress of the stream and not by the clock: the same seed gives the same schedule. Pure."""

import random
from typing import NamedTuple

MIX = {"agents-1": 0.2, "agents-2": 0.2, "collector": 0.3, "store": 0.2, "broker": 0.1}
"""Share of the hits by part. The broker takes longest to come back, and the agents have most to lose."""

ROUND_HITS = 5
"""Hits between two moments at which both agents are known to work. A group that loses a member every few seconds does nothing but
rebalance (a dead member is missed after 10 s), and a worker that has no partitions has nothing to lose."""

QUICK_SHARE = 0.25  # hits that come so soon after another that two parts are down at once
QUICK_EVENTS = 20  # about one request
LOST_WRITES_SHARE = 0.5  # of the store's hits, when it is to lose writes
LOST_BYTES = (16_384, 262_144)  # a row is 1 to 3 kB in the append-only file: some ten to some hundred rows


class Hit(NamedTuple):
    """Kill -9 of `part` once `at` events of the stream have been answered."""

    at: int
    part: str
    settled: bool
    """Only when both agents have partitions again: the first of a round."""
    lost_bytes: int = 0
    """What the end of the store's append-only file loses before the restart, as after a loss of power."""


def schedule(seed: int, hits: int, events: int, lost_writes: bool = False) -> list[Hit]:
    """`hits` over the middle nine tenths of `events`, each part at its share of MIX (every part at least once from five hits on)."""
    rng = random.Random(seed)
    first, step = events // 20, (events * 9 // 10) / max(hits, 1)
    found: list[Hit] = []
    for in_round in _rounds(_counts(hits), rng):
        for n, part in enumerate(in_round):
            at = first + int(step * (len(found) + rng.random() / 2))
            if n and rng.random() < QUICK_SHARE:
                at = found[-1].at + QUICK_EVENTS
            lost = rng.randint(*LOST_BYTES) if lost_writes and part == "store" and rng.random() < LOST_WRITES_SHARE else 0
            found.append(Hit(max(at, found[-1].at + 1) if found else at, part, n == 0, lost))
    return found


def _counts(hits: int) -> dict[str, int]:
    """Hits by part in the proportions of MIX, what rounding leaves to the parts that it cut most."""
    exact = {part: max(share * hits, 1.0 if hits >= len(MIX) else 0.0) for part, share in MIX.items()}
    counts = {part: int(value) for part, value in exact.items()}
    for part in sorted(exact, key=lambda part: counts[part] - exact[part])[: hits - sum(counts.values())]:
        counts[part] += 1
    return counts


def _rounds(counts: dict[str, int], rng: random.Random) -> list[list[str]]:
    """The hits dealt to rounds of about ROUND_HITS, no agent twice in one, in random order within each."""
    number = max(-(-sum(counts.values()) // ROUND_HITS), counts["agents-1"], counts["agents-2"])
    rounds: list[list[str]] = [[] for _ in range(number)]
    others = [part for part, count in counts.items() if not part.startswith("agents") for _ in range(count)]
    rng.shuffle(others)
    for agent in ("agents-1", "agents-2"):
        for chosen in rng.sample(rounds, counts[agent]):
            chosen.append(agent)
    for part in others:
        min(rounds, key=len).append(part)
    for chosen in rounds:
        rng.shuffle(chosen)
    return [chosen for chosen in rounds if chosen]
