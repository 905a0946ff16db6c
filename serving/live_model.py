"""The model that answers now: which version, and its two signatures as calls."""

import asyncio
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import structlog

from features.encoder import Inputs
from serving.model_client import ModelClient, ModelNotFoundError, ModelUnavailableError

log = structlog.get_logger()

FOLLOW_S = 0.5  # how often the model server is asked for its versions; it keeps the older one loaded meanwhile
OBJECTIVES = ("click", "cart", "purchase")
OBJECTIVE_WEIGHTS = np.array([1.0, 3.0, 5.0], dtype=np.float32)  # as in features.events.ENGAGEMENT


class LiveModel:
    """One explicit version: every call of a request names it, so retrieval and ranking never mix versions.

    `feature_version` names the features that it was trained on: a request encodes these and no others for it.
    """

    def __init__(self, client: ModelClient, version: int, feature_version: str) -> None:
        self.version = version
        self.feature_version = feature_version
        self._client = client

    async def retrieve(self, shopper: Inputs, timeout_s: float) -> Sequence[str]:
        """Items near the shopper's vector, nearest first. `shopper` as `Encoder.shopper` makes it.

        Raises:
            ModelUnavailableError, ModelNotFoundError: the model server does not answer, or unloaded the version.
        """
        inputs = {name: array[None] for name, array in shopper.items()}
        out = await self._client.predict(self.version, "retrieve", inputs, timeout_s, ("item",))
        found = out.get("item")
        if found is None or found.ndim != 2 or found.dtype != object:
            raise ModelUnavailableError("model_garbage", f"model version {self.version} retrieved no list of ids: {out}")
        return [item.decode(errors="replace") for item in found[0].tolist() if item]

    async def rank(self, inputs: Inputs, count: int, timeout_s: float) -> npt.NDArray[np.float32]:
        """[count, 3] probabilities of OBJECTIVES, in the order given. `inputs` are a shopper's and `count` candidates', without batch axis.

        Raises:
            ModelUnavailableError: the model server does not answer, or answers what is no probability.
            ModelNotFoundError: it unloaded the version.
        """
        batch = {name: array[None] for name, array in inputs.items()}
        out = await self._client.predict(self.version, "rank", batch, timeout_s, OBJECTIVES)
        try:
            # A batching TensorFlow Serving pads answers to the longest candidate list of the batch.
            chances = np.stack([out[objective][0][:count] for objective in OBJECTIVES], axis=1).astype(np.float32, copy=False)
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise ModelUnavailableError("model_garbage", f"model version {self.version} answered no scores: {error!r}") from error
        # NaN is not at least 0 either.
        if chances.shape != (count, len(OBJECTIVES)) or not ((chances >= 0.0) & (chances <= 1.0)).all():
            raise ModelUnavailableError(
                "model_garbage", f"model version {self.version} answered {chances.shape} scores, or some that are no probability"
            )
        return chances


async def describe(client: ModelClient, version: int, timeout_s: float) -> str:
    """The feature version that a model version was trained on, as the model itself says.

    Raises:
        ModelUnavailableError, ModelNotFoundError: as LiveModel's calls.
    """
    out = await client.predict(version, "describe", {"ask": np.array([b""], dtype=object)}, timeout_s, ("feature_version",))
    return str(out["feature_version"][0].decode())


class ModelFollower:
    """Follows the model server's versions; `live` is the newest that it has available and that can be served, None while there is none.

    `servable` says whether the features of a version are at hand: until they are, the model before goes on.
    """

    def __init__(self, client: ModelClient, timeout_s: float, servable: Callable[[str], bool]) -> None:
        self.live: LiveModel | None = None
        self.reason = "no_model"
        """Why there is no live model, in the words of a degraded answer."""
        self._client = client
        self._timeout_s = timeout_s
        self._servable = servable
        self._trained_on: dict[int, str] = {}  # model version -> feature version, of the models available
        self._passed_over: set[int] = set()  # told once

    async def refresh(self) -> None:
        """Ask once. A server that does not answer keeps the version: requests find out for themselves."""
        try:
            versions = await self._client.versions()
            self._trained_on = {version: known for version, known in self._trained_on.items() if version in versions}
            newest = await self._newest_servable(versions)
        except ModelUnavailableError as error:
            if self.live is None:
                self.reason = error.reason
            return
        except ModelNotFoundError:
            return  # unloaded in between; the next look finds out
        self.reason = "features_not_loaded" if versions else "no_model"
        if newest != (self.live.version if self.live else 0):
            feature_version = self._trained_on.get(newest, "")
            log.info("model version", version=newest, feature_version=feature_version)
            self.live = LiveModel(self._client, newest, feature_version) if newest else None

    async def _newest_servable(self, versions: Sequence[int]) -> int:
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
