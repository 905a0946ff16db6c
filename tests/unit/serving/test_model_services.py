"""Where a run happens: on the event loop only when nobody else waits and such runs have been brief."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from serving import tfserving_pb2 as pb
from serving.model_server.runtime import Value
from serving.model_server.servable import BRIEF_S, Brief, Call
from serving.model_server.services import PredictionService
from serving.tensors import STRING


def call(size: int, key: str = "rank") -> Call:
    return Call(key, (b"x" * size,), ((1,),), ("score",), True)


def test_brief_is_what_was_and_what_is_no_larger() -> None:
    brief = Brief()
    assert call(1) not in brief, "nothing is known"
    brief.note(call(100), BRIEF_S / 2)
    assert [call(size) in brief for size in (1, 100, 101)] == [True, True, False]
    assert call(1, "retrieve") not in brief
    brief.note(call(40), BRIEF_S)
    assert [call(size) in brief for size in (39, 40, 100)] == [True, False, False]
    brief.note(call(200), 2 * BRIEF_S)
    assert call(39) in brief, "a long run of more says nothing of less"
    brief.note(call(60), BRIEF_S / 2)
    assert [call(size) in brief for size in (60, 61)] == [True, False], "and it may turn out otherwise"


class Servable:
    """Answers with the thread that ran it, once told to. Calls of `rank` are brief."""

    name, version = "shelf", 1

    def __init__(self) -> None:
        self.brief, self.held = Brief(), 0
        self.brief.note(call(10), 0.0)
        self.go_on = threading.Event()

    def prepare(self, request: Any) -> Call:
        return call(10, request.model_spec.signature_name)

    def run(self, call: Call) -> dict[str, Value]:
        assert self.go_on.wait(10)
        return {"score": Value(STRING, (1,), [threading.current_thread().name.encode()])}

    def hold(self) -> None:
        self.held += 1

    def release(self) -> None:
        self.held -= 1

    @contextmanager
    def servable(self, spec: Any) -> Iterator["Servable"]:
        yield self


def test_a_brief_run_alone_is_done_on_the_spot_and_any_other_in_the_pool() -> None:
    servable = Servable()

    async def run() -> None:
        with ThreadPoolExecutor(4, "pool") as pool:
            service = PredictionService(servable, pool, None)  # type: ignore[arg-type]

            async def ran_in(signature: str) -> str:
                answer = await service._predict(
                    pb.RawPredictRequest(model_spec=pb.ModelSpec(name="shelf", signature_name=signature))
                )
                return str(answer.outputs["score"].string_val[0].decode().split("_")[0])

            long = asyncio.ensure_future(ran_in("retrieve"))
            await asyncio.sleep(0)
            beside = asyncio.ensure_future(ran_in("rank"))
            await asyncio.sleep(0)
            assert servable.held == 2
            servable.go_on.set()
            assert [await long, await beside] == ["pool", "pool"]
            assert (await ran_in("rank"), await ran_in("retrieve")) == ("MainThread", "pool")

    asyncio.run(run())
    assert servable.held == 0
