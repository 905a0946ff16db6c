"""The models that answer now: which version answers whom, and its two signatures as calls."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import structlog
from prometheus_client import Gauge

from features.encoder import Inputs
from liveshelf.errors import CorruptError
from serving.joined import Joined
from serving.model_client import LATEST, ModelClient, ModelNotFoundError, ModelUnavailableError
from serving.tensors import Array
from streams.route import AUTOMATIC, STABLE, read_route

log = structlog.get_logger()

FOLLOW_S = 0.5  # how often the model server is asked for its versions; it keeps the older one loaded meanwhile
LABEL_EVERY_S = 5.0  # how often a server that had no label is asked whether it has one now
HELD_AFTER_S = 10.0  # `liveshelf models` loads what it holds by itself; only what is missing later is the scorer's to ask for
HELD_EVERY_S = 30.0  # loading takes seconds
OBJECTIVES = ("click", "cart", "purchase")
OBJECTIVE_WEIGHTS = np.array([1.0, 3.0, 5.0], dtype=np.float32)  # as in features.events.ENGAGEMENT

MODEL_VERSION = Gauge("liveshelf_scoring_model_version", "Version that answers; 0: none", ["role"])


class LiveModel:
    """One explicit version: every call of a request names it, so retrieval and ranking never mix versions.

    `feature_version` names the features that it was trained on: a request encodes these and no others for it.
    """

    def __init__(self, client: ModelClient, version: int, feature_version: str) -> None:
        self.version = version
        self.feature_version = feature_version
        self._client = client
        self._retrieve = Joined(partial(self._ask, "retrieve", ("item",)))
        # By the number of binary digits of their number of candidates: a batch is as long as its longest list.
        self._rank: defaultdict[int, Joined] = defaultdict(lambda: Joined(partial(self._ask, "rank", OBJECTIVES)))

    async def retrieve(self, shopper: Inputs, timeout_s: float) -> Sequence[str]:
        """Items near the shopper's vector, nearest first. `shopper` as `Encoder.shopper` makes it.

        Raises:
            ModelUnavailableError, ModelNotFoundError: the model server does not answer, or unloaded the version.
        """
        out = await self._retrieve.ask(shopper, timeout_s)
        found = out.get("item")
        if found is None or found.ndim != 1 or found.dtype != object:
            raise ModelUnavailableError("model_garbage", f"model version {self.version} retrieved no list of ids: {out}")
        return [item.decode(errors="replace") for item in found.tolist() if item]

    async def rank(self, inputs: Inputs, count: int, timeout_s: float) -> npt.NDArray[np.float32]:
        """[count, 3] probabilities of OBJECTIVES, in the order given. `inputs` are a shopper's and `count` candidates', without batch axis.

        Raises:
            ModelUnavailableError: the model server does not answer, or answers what is no probability.
            ModelNotFoundError: it unloaded the version.
        """
        out = await self._rank[count.bit_length()].ask(inputs, timeout_s)
        try:
            chances = np.stack([out[objective][:count] for objective in OBJECTIVES], axis=1).astype(np.float32, copy=False)
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise ModelUnavailableError("model_garbage", f"model version {self.version} answered no scores: {error!r}") from error
        # NaN is not at least 0 either.
        if chances.shape != (count, len(OBJECTIVES)) or not ((chances >= 0.0) & (chances <= 1.0)).all():
            raise ModelUnavailableError(
                "model_garbage", f"model version {self.version} answered {chances.shape} scores, or some that are no probability"
            )
        return chances

    async def _ask(self, signature: str, outputs: tuple[str, ...], inputs: Inputs, timeout_s: float) -> dict[str, Array]:
        out = await self._client.predict(self.version, signature, inputs, timeout_s, outputs)
        rows = len(next(iter(inputs.values())))
        if any(array.shape[:1] != (rows,) for array in out.values()):
            shapes = {name: array.shape for name, array in out.items()}
            raise ModelUnavailableError("model_garbage", f"model version {self.version} answered {shapes} to {rows} shoppers")
        return out


async def describe(client: ModelClient, version: int, timeout_s: float) -> str:
    """The feature version that a model version was trained on, as the model itself says.

    Raises:
        ModelUnavailableError, ModelNotFoundError: as LiveModel's calls.
    """
    out = await client.predict(version, "describe", {"ask": np.array([b""], dtype=object)}, timeout_s, ("feature_version",))
    return str(out["feature_version"][0].decode())


class ModelFollower:
    """Follows the model server's versions, and which of them are to answer whom.

    What is held in the model directory (see `streams.route`) comes first; without it, the version that the server itself labels `stable`; else
    the newest one. A version answers only when it can be served: `servable` says whether the features of a version are at hand, and until
    they are, the model before goes on.
    """

    def __init__(
        self,
        client: ModelClient,
        timeout_s: float,
        servable: Callable[[str], bool],
        model_path: Path | None = None,
        base_path: str = "",
    ) -> None:
        """`model_path`: the model directory as we see it; `base_path`: as the model server does."""
        self.live: LiveModel | None = None
        """Answers everybody whom the canary does not."""
        self.canary: LiveModel | None = None
        self.reason = "no_model"
        """Why there is no live model, in the words of a degraded answer."""
        self._client = client
        self._timeout_s = timeout_s
        self._servable = servable
        self._model_path, self._base_path = model_path, base_path
        self._route = AUTOMATIC
        self._label_due_s = self._held_due_s = 0.0  # when the server is next asked for labels, and told what is held
        self._labelled = 0
        self._trained_on: dict[int, str] = {}  # model version -> feature version, of the models available
        self._passed_over: set[int] = set()  # told once

    def of(self, shopper: str) -> LiveModel | None:
        """The model that answers this shopper, from beginning to end of a request."""
        return self.canary if self.canary and self._route.picks_canary(shopper) else self.live

    async def refresh(self) -> None:
        """Ask once. A server that does not answer keeps the versions: requests find out for themselves."""
        try:
            versions = await self._client.versions()
            self._trained_on = {version: known for version, known in self._trained_on.items() if version in versions}
            self._read_route()
            stable = self._route.stable or await self._stable_label()
            await self._load_held(versions)
            # A held version that is not up (yet) leaves what answers now; after a start that is the newest, better than none.
            first = [stable, self.live.version if self.live else 0] if stable else []
            live = await self._servable_first([v for v in [*first, *versions] if v in versions])
            canary = await self._servable_first([v for v in versions if v == self._route.canary])
        except ModelUnavailableError as error:
            if self.live is None:
                self.reason = error.reason
            return
        except ModelNotFoundError:
            return  # unloaded in between; the next look finds out
        self.reason = "features_not_loaded" if versions else "no_model"
        self.live = self._switched("stable", self.live, live)
        self.canary = self._switched("canary", self.canary, canary)

    def _switched(self, role: str, now: LiveModel | None, version: int) -> LiveModel | None:
        if version == (now.version if now else 0):
            return now
        feature_version = self._trained_on.get(version, "")
        log.info("model version", role=role, version=version, feature_version=feature_version)
        MODEL_VERSION.labels(role).set(version)
        return LiveModel(self._client, version, feature_version) if version else None

    def _read_route(self) -> None:
        if self._model_path is None:
            return
        try:
            route = read_route(self._model_path)
        except CorruptError as error:
            log.error("held versions cannot be read, going on with those of before", error=str(error))
            return
        if route != self._route:
            log.info("route", stable=route.stable, canary=route.canary, share=route.share)
            self._route, self._held_due_s = route, time.monotonic() + HELD_AFTER_S

    async def _stable_label(self) -> int:
        """The version that the server labels `stable`, 0 for none; asked for often only while there is one."""
        now_s = time.monotonic()
        if self._labelled or now_s >= self._label_due_s:
            self._label_due_s = now_s + LABEL_EVERY_S
            self._labelled = await self._client.labelled(STABLE)
        return self._labelled

    async def _load_held(self, versions: Sequence[int]) -> None:
        """Tell a server that lacks held versions to serve them: it was restarted, and read a configuration of its own."""
        missing = self._route.held - set(versions)
        now_s = time.monotonic()
        if not missing or now_s < self._held_due_s or self._model_path is None:
            return
        self._held_due_s = now_s + HELD_EVERY_S
        if wanted := {v for v in self._route.held if (self._model_path / str(v)).is_dir()} - set(versions):
            log.warning("the model server lacks versions that are held", missing=sorted(wanted))
            await self._client.configure(self._base_path or str(self._model_path), self._route.held | set(versions[:LATEST]), {})

    async def _servable_first(self, versions: Sequence[int]) -> int:
        """The first of `versions` whose features are at hand; 0 when there is none."""
        for version in versions:
            if version not in self._trained_on:
                try:
                    self._trained_on[version] = await describe(self._client, version, self._timeout_s)
                except ModelUnavailableError as error:
                    if error.reason != "model_refused":
                        raise
                    self._pass_over(version, f"it does not say what it was trained on: {error}")
                    continue
            if self._servable(self._trained_on[version]):
                self._passed_over.discard(version)
                return version
            self._pass_over(version, f"feature version {self._trained_on[version]} is not loaded")
        return 0

    def _pass_over(self, version: int, reason: str) -> None:
        if version not in self._passed_over:
            self._passed_over.add(version)
            log.warning("model waits", version=version, reason=reason)

    async def follow(self) -> None:
        while True:
            await self.refresh()
            await asyncio.sleep(FOLLOW_S)
