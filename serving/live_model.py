"""The model that answers now: which version, and its two signatures as calls."""

import asyncio
from collections.abc import Sequence

import numpy as np
import structlog

from features.encoder import encode, encode_shopper
from features.rows import FeaturesAsServed, ShopperRow
from serving.model_client import ModelClient, ModelUnavailableError
from serving.query import Scored

log = structlog.get_logger()

FOLLOW_S = 0.5  # how often the model server is asked for its versions; it keeps the older one loaded meanwhile
OBJECTIVES = ("click", "cart", "purchase")
OBJECTIVE_WEIGHTS = np.array([1.0, 3.0, 5.0], dtype=np.float32)  # as in features.events.ENGAGEMENT


class LiveModel:
    """One explicit version: every call of a request names it, so retrieval and ranking never mix versions."""

    def __init__(self, client: ModelClient, version: int, timeout_s: float) -> None:
        self.version = version
        self._client = client
        self._timeout_s = timeout_s

    async def retrieve(self, shopper: ShopperRow, time_ms: int) -> Sequence[str]:
        """Items near the shopper's vector, nearest first.

        Raises:
            ModelUnavailableError, ModelNotFoundError: the model server does not answer, or unloaded the version.
        """
        inputs = {name: array[None] for name, array in encode_shopper(shopper, time_ms).items()}
        out = await self._client.predict(self.version, "retrieve", inputs, self._timeout_s, ("item",))
        return [item.decode() for item in out["item"][0].tolist() if item]

    async def rank(self, served: FeaturesAsServed, sources: Sequence[str]) -> list[Scored]:
        """One `Scored` a candidate, in the order given.

        Raises:
            ModelUnavailableError: the model server does not answer, or answers what is no probability.
            ModelNotFoundError: it unloaded the version.
        """
        inputs = {name: array[None] for name, array in encode(served).items()}
        out = await self._client.predict(self.version, "rank", inputs, self._timeout_s, OBJECTIVES)
        # A batching TensorFlow Serving pads answers to the longest candidate list of the batch.
        probabilities = np.stack([out[objective][0][: len(sources)] for objective in OBJECTIVES], axis=1)
        if probabilities.shape != (len(sources), len(OBJECTIVES)) or not np.isfinite(probabilities).all():
            raise ModelUnavailableError(
                "model_garbage", f"model version {self.version} answered {probabilities.shape} scores, or not finite ones"
            )
        scores = probabilities @ OBJECTIVE_WEIGHTS
        return [
            Scored(item, source, score, *probability)
            for item, source, score, probability in zip(
                served.candidates.items, sources, scores.tolist(), probabilities.tolist(), strict=True
            )
        ]


class ModelFollower:
    """Follows the model server's versions; `live` is the newest that it has available, None while there is none."""

    def __init__(self, client: ModelClient, timeout_s: float) -> None:
        self.live: LiveModel | None = None
        self.reason = "no_model"
        """Why there is no live model, in the words of a degraded answer."""
        self._client = client
        self._timeout_s = timeout_s

    async def refresh(self) -> None:
        """Ask once. A server that does not answer keeps the version: requests find out for themselves."""
        try:
            versions = await self._client.versions()
        except ModelUnavailableError as error:
            if self.live is None:
                self.reason = error.reason
            return
        newest = versions[0] if versions else 0
        if newest != (self.live.version if self.live else 0):
            log.info("model version", version=newest)
            self.live = LiveModel(self._client, newest, self._timeout_s) if newest else None
        self.reason = "no_model"

    async def follow(self) -> None:
        while True:
            await self.refresh()
            await asyncio.sleep(FOLLOW_S)
