"""A query of the session index over 500,000 sessions: `python -m tests.bench.sessions [--sessions N]`. The last line is one JSON object."""

import argparse
import json
import time

import numpy as np

from features.sessions import SessionIndex

ITEMS, ZIPF = 50_000, 1.1
WARM, QUERIES = 50, 2_000
BAR_MS = 1.0


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--sessions", type=int, default=500_000)
    sessions = arguments.parse_args().sessions
    rng = np.random.default_rng(7)
    share = 1 / np.arange(1, ITEMS + 1) ** ZIPF
    cumulative = np.cumsum(share / share.sum())

    def visit() -> list[int]:
        n = min(20, 1 + int(rng.geometric(0.25)))
        return np.minimum(1 + np.searchsorted(cumulative, rng.random(n)), ITEMS).tolist()  # type: ignore[no-any-return]

    index = SessionIndex(sessions)
    visits = [visit() for _ in range(sessions)]
    began = time.perf_counter()
    index.extend((at, items, float(at)) for at, items in enumerate(visits))
    feed_s = time.perf_counter() - began
    took = []
    for _ in range(WARM + QUERIES):
        asked = visit()
        began = time.perf_counter()
        index.query(asked, float(sessions))
        took.append(1e3 * (time.perf_counter() - began))
    p50, p99 = np.percentile(took[WARM:], [50, 99])
    clicks = sum(map(len, visits))
    figures = {
        "sessions": sessions,
        "query_p50_ms": round(p50, 3),
        "query_p99_ms": round(p99, 3),
        "mean_ms": round(float(np.mean(took[WARM:])), 3),
    }
    print(json.dumps(figures | {"clicks_per_s": round(clicks / feed_s), "bar_p50_ms": BAR_MS}))


if __name__ == "__main__":
    main()
