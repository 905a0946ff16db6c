"""Decides about a canary by what shoppers do: those whom it answers beside those whom the stable version does.

Of each shopper the first shelf counts on which one of the two answered since the canary began, as clicked on or not. Shoppers are assigned by a hash, and
one does not know of another, so these are independent trials with two rates, however much one shopper clicks. Both rates have bounds that
hold at every look (see `sequential`); together they are wrong with probability ALPHA at most, ever.

    rolled back   the canary's rate is surely below the stable version's, or SHOPPERS_MAX have not told them apart
    promoted      it is surely no less than 1 - WORSE_TOLERATED of the stable version's
"""

import os
import subprocess
import sys
import time
from typing import Literal, NamedTuple

import msgspec
import structlog

from liveshelf.errors import LiveshelfError, UnavailableError
from liveshelf.settings import PREFIX, Settings
from streams.records import Release
from streams.route import AUTOMATIC, Route, read_route
from streams.topics import TRAINING_EXAMPLES
from trainer import releases
from trainer.log import LogReader, Offsets, offsets_at
from trainer.sequential import bounds

log = structlog.get_logger()

ALPHA = 0.05
WORSE_TOLERATED = 0.1
"""Of the stable version's rate. Less would take many more shoppers: at 10% clicks some 20,000 canary shoppers show that a tenth is not lost, and
four times as many that a twentieth is not."""
SHOPPERS_MAX = 100_000  # of the canary; what these cannot tell apart, more will not within a season
STABLE_SHOPPERS_MAX = (
    400_000  # of the stable version; more make its bounds no narrower that matters, and 100,000 ids are some 13 MB
)
CLOCKS_APART_MS = 3_600_000  # a broker's clock and ours, at most: examples are looked for from that much earlier on
COMMAND_S_MAX = 180.0  # `liveshelf models` loads a version and lets scorers settle
PROMOTED, ROLLED_BACK = "canary_promoted", "canary_rolled_back"


class Arm(NamedTuple):
    """Shoppers whom one version answered, and those of them who clicked on their first shelf."""

    shoppers: int
    clicked: int
    low: float
    high: float

    @property
    def rate(self) -> float:
        return self.clicked / self.shoppers if self.shoppers else 0.0

    def __str__(self) -> str:
        return f"{self.clicked} of {self.shoppers} shoppers clicked ({self.rate:.2%}, surely {self.low:.2%} to {self.high:.2%})"


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """How a canary stands."""

    canary: int
    stable: int
    decision: str
    """`canary_promoted` or `canary_rolled_back`; empty while nothing is decided."""
    reason: str
    metrics: dict[str, float]


def arm(clicked: int, shoppers: int) -> Arm:
    low, high = bounds(clicked, shoppers, ALPHA / 2)
    return Arm(shoppers, clicked, float(low), float(high))


def decide(canary: Arm, stable: Arm) -> tuple[str, str]:
    """The decision, empty while there is none, and the reason for it."""
    said = f"of the canary's shelves {canary}, of the stable version's {stable}"
    if canary.high < stable.low:
        return ROLLED_BACK, f"the canary is surely worse: {said}"
    if canary.low >= (1 - WORSE_TOLERATED) * stable.high:
        return PROMOTED, f"the canary is surely not worse by more than {WORSE_TOLERATED:.0%}: {said}"
    if canary.shoppers >= SHOPPERS_MAX:
        return ROLLED_BACK, f"{SHOPPERS_MAX} shoppers have not told them apart: {said}"
    return "", f"not told apart yet: {said}"


class Shelf(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What counts of an example."""

    v: Literal[1] = 1
    shopper: str
    time_ms: int
    late: str = ""
    model_version: int = 0
    clicked: list[int]


class Counts:
    """Of one canary, so far."""

    def __init__(self, route: Route) -> None:
        self.route = route
        self._seen: set[str] = set()
        self._shoppers = {route.canary: 0, route.stable: 0}
        self._clicked = {route.canary: 0, route.stable: 0}

    def add(self, shelf: Shelf) -> None:
        """Count the first shelf of a shopper, if it is one of the version that was to answer: right after a change a scorer may not have
        followed yet, and what no model answered is neither version's."""
        wanted = self.route.canary if self.route.picks_canary(shelf.shopper) else self.route.stable
        if shelf.late or shelf.time_ms < self.route.since_ms or shelf.model_version != wanted or shelf.shopper in self._seen:
            return
        if wanted == self.route.stable and self._shoppers[wanted] >= STABLE_SHOPPERS_MAX:
            return
        self._seen.add(shelf.shopper)
        self._shoppers[wanted] += 1
        self._clicked[wanted] += any(shelf.clicked)

    def standing(self) -> Standing:
        canary, stable = (arm(self._clicked[v], self._shoppers[v]) for v in (self.route.canary, self.route.stable))
        decision, reason = decide(canary, stable)
        return Standing(
            canary=self.route.canary,
            stable=self.route.stable,
            decision=decision,
            reason=reason,
            metrics={
                f"{name}_{figure}": float(value)
                for name, one in (("canary", canary), ("stable", stable))
                for figure, value in {**one._asdict(), "rate": one.rate}.items()
            },
        )


class Canary:
    """Follows the canary that there is, if any. Not thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._counts = Counts(AUTOMATIC)
        self._offsets: Offsets = {}
        self.standing: Standing | None = None
        """Of the last look."""

    def look(self) -> Standing | None:
        """Count what came since the last look. None without a canary.

        Raises:
            UnavailableError: Kafka does not answer.
            CorruptError: serving.json cannot be read.
        """
        route = read_route(self._settings.model_path)
        if not route.canary:
            self.standing = None
            return None
        if route != self._counts.route or not self._offsets:
            self._counts = Counts(route)
            self._offsets = offsets_at(self._settings, TRAINING_EXAMPLES, max(route.since_ms - CLOCKS_APART_MS, 0))
        reader = LogReader(self._settings, TRAINING_EXAMPLES, Shelf, self._offsets)
        for logged in reader:
            for _, _, shelf in logged:
                self._counts.add(shelf)
        self._offsets = reader.offsets
        self.standing = self._counts.standing()
        return self.standing

    def act(self) -> Release | None:
        """Put what the last look decided in force, as a person would, and tell `model-releases`; None when nothing was.

        Told first and once, so that a trainer which dies in between does the rest at its next start.

        Raises:
            UnavailableError: Kafka does not answer, or the versions could not be switched; the next call tries again.
        """
        standing, route = self.standing, self._counts.route
        if standing is None or not standing.decision or read_route(self._settings.model_path) != route:
            return None
        history = releases.history(self._settings)
        told = [
            r for r in history if r.outcome in (PROMOTED, ROLLED_BACK) and r.version == route.canary and r.time_ms >= route.since_ms
        ]
        release = told[-1] if told else self._release(standing, history)
        if not told:
            releases.publish(self._settings, release)
        _models(self._settings, *(("promote", str(route.canary)) if release.outcome == PROMOTED else ("rollback",)))
        log.info(release.outcome, version=release.version, reason=release.reason)
        return release

    def _release(self, standing: Standing, history: list[Release]) -> Release:
        trained_on = next((r.feature_version for r in history if r.version == standing.canary), "")
        return Release(
            model=self._settings.model_name,
            version=standing.canary,
            parent=standing.stable,
            outcome=standing.decision,
            reason=standing.reason,
            metrics=standing.metrics,
            offsets=self._offsets,
            examples=int(standing.metrics["canary_shoppers"] + standing.metrics["stable_shoppers"]),
            feature_version=trained_on,
            time_ms=time.time_ns() // 1_000_000,
        )


def _models(settings: Settings, *verb: str) -> None:
    """`liveshelf models VERB`, with these very settings: versions are switched in one way, whoever decides."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    environ |= {PREFIX + name.upper(): str(getattr(settings, name)) for name in Settings.__struct_fields__}
    command = [sys.executable, "-P", "-m", "liveshelf.cli.main", "models", *verb]
    try:
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=COMMAND_S_MAX, check=False)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"liveshelf models {' '.join(verb)} was not done in {COMMAND_S_MAX:.0f} s") from error
    if done.returncode:
        raise LiveshelfError(f"liveshelf models {' '.join(verb)} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
