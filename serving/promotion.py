"""Changes which model versions answer: loads what is missing, labels it, tells the scorers, and only then lets go of what is no longer used.

1  the server also loads what is wanted, and all that answers now stays
2  labels are moved, once the versions are up (TensorFlow Serving refuses a label of a version that is not)
3  serving.json is written: every scorer follows within half a second, each request with one version from beginning to end
4  after SETTLE_S nobody begins with an old version any more, and the server may unload it; it finishes what it has first
"""

import asyncio
import time

from liveshelf.errors import ConflictError, NotFoundError, UnavailableError
from liveshelf.settings import Settings
from serving.model_client import ModelClient
from streams.route import AUTOMATIC, Route, read_route, write_route

LOAD_S_MAX = 120.0  # a large model on a busy machine
SETTLE_S = 2.0  # four looks of a scorer


class Promotion:
    """The verbs of `liveshelf models`. Each returns the route that it put in force.

    Raises (every verb):
        NotFoundError: no such version on the disk, or none to go back to.
        ConflictError: a canary that is the live version already.
        UnavailableError: the model server does not answer, or did not load a version; what answered before still does.
        CorruptError: serving.json cannot be read.
    """

    def __init__(self, settings: Settings, client: ModelClient) -> None:
        self._path, self._base_path, self._client = settings.model_path, settings.model_base_path, client

    def versions(self) -> list[int]:
        """On the disk, oldest first."""
        found = self._path.iterdir() if self._path.is_dir() else ()
        return sorted(int(entry.name) for entry in found if entry.name.isdigit() and (entry / "saved_model.pb").is_file())

    async def live(self) -> int:
        """The version that answers everybody whom no canary does."""
        stable = read_route(self._path).stable
        available = [] if stable else await self._client.versions()
        if not stable and not available:
            raise NotFoundError("no model version answers yet; `liveshelf train` makes the first one once the log holds events")
        return stable or available[0]

    async def promote(self, version: int, share: float = 1.0) -> Route:
        """`version` answers everybody, or as a canary that share of the shoppers. The newest one promoted, later ones take over by themselves."""
        live, before = await self.live(), read_route(self._path).before
        if share < 1.0:
            if version == live:
                raise ConflictError(f"version {version} answers everybody already; a canary is another version")
            now_ms = time.time_ns() // 1_000_000  # as the scorers' clocks, which say when a shelf was shown
            return await self._put(Route(stable=live, canary=version, share=share, since_ms=now_ms, before=before))
        if version == max(self.versions(), default=0):
            return await self._put(AUTOMATIC)
        return await self._put(Route(stable=version, before=live if live != version else before))

    async def rollback(self) -> Route:
        """End the canary; without one, go back to what answered before. Newer versions wait from then on."""
        route = read_route(self._path)
        if route.canary:
            return await self._put(Route(stable=route.stable, before=route.before))
        live = await self.live()
        older = [v for v in self.versions() if v < live]
        if not (target := (route.before if route.stable else 0) or max(older, default=0)):
            raise NotFoundError(f"there is no version before {live} to go back to")
        return await self._put(Route(stable=target))

    async def pin(self, version: int = 0) -> Route:
        """Hold `version`, by default the one that answers: newer ones wait."""
        live, route = await self.live(), read_route(self._path)
        return await self._put(Route(stable=version or live, before=route.before if version in (0, live) else live))

    async def unpin(self) -> Route:
        """The newest version answers, and later ones take over by themselves."""
        return await self._put(AUTOMATIC)

    async def _put(self, route: Route) -> Route:
        on_disk = self.versions()
        asked = {v for v in (route.stable, route.canary) if v} or set(on_disk[-1:])
        if missing := asked - set(on_disk):
            raise NotFoundError(f"there is no version {min(missing)} in {self._path}; there are {on_disk or 'none'}")
        wanted = asked | (route.held & set(on_disk))
        available = set(await self._client.versions())
        now = {label: version for label, version in self._now().labels.items() if version in available}
        if wanted - available:
            await self._client.configure(self._base_path, available | wanted, now)
            await self._up(wanted)
        await self._client.configure(self._base_path, available | wanted, route.labels)
        write_route(self._path, route)
        await asyncio.sleep(SETTLE_S)
        await self._client.configure(self._base_path, wanted if route.stable else set(), route.labels)
        return route

    def _now(self) -> Route:
        return read_route(self._path)

    async def _up(self, wanted: set[int]) -> None:
        ends_s = time.monotonic() + LOAD_S_MAX
        while missing := wanted - set(await self._client.versions()):
            if time.monotonic() > ends_s:
                raise UnavailableError(
                    f"the model server did not load version {min(missing)} from {self._base_path} within {LOAD_S_MAX:.0f} s; see "
                    "`liveshelf logs model-server`. Where it sees the model directory elsewhere, set LIVESHELF_MODEL_SERVER_BASE_PATH."
                )
            await asyncio.sleep(0.1)
