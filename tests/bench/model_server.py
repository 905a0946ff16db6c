"""Predict over loopback against the same SavedModel in process, and version swaps under load: `python -m tests.bench.model_server [--json]`.

The model has the shape of ours at its target size: 100,000 items of 64 numbers, ids looked up inside the graph, one shopper and 500 candidates
a request. The server is a process of its own, started as `liveshelf model-server` starts it.

    predict_overhead_ms   p50 of Predict through our client, less p50 of a session callable in this process: the two take turns
    swap_p99_ratio        p99 of a paced load while versions come and go, over p99 of the same load without; the two take turns
"""

import argparse
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import grpc
import numpy as np

from liveshelf.settings import Settings
from serving.model_client import ModelClient
from serving.tensors import Array
from tests.conftest import free_port

ITEMS, DIM, CANDIDATES, FEATURES, RECENT = 100_000, 64, 500, 17, 20
ROUNDS = 3
CALLS_PER_ROUND = 400
SWAPS_PER_ROUND = 7
LOAD_RPS = 150  # on two cores, which the load itself shares: about a third of them
STEADY_S = 5.0
WARM_REQUESTS = 2 * LOAD_RPS
MODEL = "shelf"
Inputs = dict[str, Array]


def export(path: Path) -> None:
    """A SavedModel with the signatures `rank` and `serving_default` over {recent, candidates, candidate_features}."""
    import tensorflow as tf

    class Shelf(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            rng = np.random.default_rng(7)
            ids = tf.constant([f"item-{i:06}".encode() for i in range(ITEMS)])
            words = tf.lookup.KeyValueTensorInitializer(ids, tf.range(1, ITEMS + 1, dtype=tf.int64))
            self.table = tf.lookup.StaticHashTable(words, 0)
            self.vectors = tf.Variable(rng.normal(size=(ITEMS + 1, DIM)).astype(np.float32))
            sizes = [(2 * DIM + FEATURES, 64), (64, 32), (32, 3)]
            self.layers = [tf.Variable((rng.normal(size=s) / np.sqrt(s[0])).astype(np.float32)) for s in sizes]

        @tf.function(
            input_signature=[
                tf.TensorSpec([None, RECENT], tf.string, "recent"),
                tf.TensorSpec([None, None], tf.string, "candidates"),
                tf.TensorSpec([None, None, FEATURES], tf.float32, "candidate_features"),
            ]
        )
        def rank(self, recent: Any, candidates: Any, candidate_features: Any) -> dict[str, Any]:
            shopper = tf.reduce_mean(tf.gather(self.vectors, self.table.lookup(recent)), axis=1, keepdims=True)
            items = tf.gather(self.vectors, self.table.lookup(candidates))
            x = tf.concat([items, tf.broadcast_to(shopper, tf.shape(items)), candidate_features], axis=-1)
            for weights in self.layers[:-1]:
                x = tf.nn.relu(tf.einsum("bcf,fh->bch", x, weights))
            chances = tf.sigmoid(tf.einsum("bcf,fh->bch", x, self.layers[-1]))
            return {"click": chances[:, :, 0], "cart": chances[:, :, 1], "purchase": chances[:, :, 2]}

    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    model = Shelf()
    tf.saved_model.save(model, str(path), signatures={"rank": model.rank, "serving_default": model.rank})
    request = predict_pb2.PredictRequest(model_spec={"name": MODEL, "signature_name": "rank"})
    for alias, value in request_inputs().items():
        request.inputs[alias].CopyFrom(tf.make_tensor_proto(value))
    log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
    (path / "assets.extra").mkdir()
    with tf.io.TFRecordWriter(str(path / "assets.extra/tf_serving_warmup_requests")) as writer:
        writer.write(log.SerializeToString())


def request_inputs() -> Inputs:
    """One shopper and 500 candidates."""
    rng = np.random.default_rng(11)
    ids = np.array([f"item-{i:06}".encode() for i in rng.integers(0, ITEMS, RECENT + CANDIDATES)], object)
    features = rng.normal(size=(1, CANDIDATES, FEATURES)).astype(np.float32)
    return {"recent": ids[None, :RECENT], "candidates": ids[None, RECENT:], "candidate_features": features}


def in_process(path: Path) -> tuple[Callable[[Inputs], Any], Callable[[Inputs], Any]]:
    """Two ways to call a SavedModel in this process: a session callable (the quickest there is), and what `tf.saved_model.load` returns."""
    import tensorflow as tf
    from tensorflow.core.protobuf import config_pb2

    options = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=-1)
    session = tf.compat.v1.Session(graph=tf.Graph(), config=options)
    with session.graph.as_default():
        meta_graph = tf.compat.v1.saved_model.load(session, ["serve"], str(path))
    rank = meta_graph.signature_def["rank"]
    aliases = sorted(rank.inputs)
    fetch = [rank.outputs[alias].name for alias in sorted(rank.outputs)]
    callable_options = config_pb2.CallableOptions(feed=[rank.inputs[alias].name for alias in aliases], fetch=fetch)
    run = session._make_callable_from_options(callable_options)
    loaded = tf.saved_model.load(str(path))
    function = loaded.signatures["rank"]

    def by_function(inputs: Inputs, keep: Any = loaded) -> Any:
        return {k: v.numpy() for k, v in function(**{k: tf.constant(v) for k, v in inputs.items()}).items()}

    return lambda inputs: run(*[inputs[alias] for alias in aliases]), by_function


def timed_ms(call: Callable[[], Any], times: int) -> list[float]:
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        taken.append((time.perf_counter() - began) * 1e3)
    return taken


async def timed_ms_async(call: Callable[[], Awaitable[Any]], times: int) -> list[float]:
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        await call()
        taken.append((time.perf_counter() - began) * 1e3)
    return taken


def p(values: list[float], q: float) -> float:
    return round(float(np.percentile(values, q)), 3)


async def overhead(client: ModelClient, path: Path) -> dict[str, float]:
    """Take turns, so that a noisy minute of the machine is in all three."""
    session_call, function_call = in_process(path)
    inputs = request_inputs()
    expected = session_call(inputs)
    answer = await client.predict(1, "rank", inputs, 10.0)
    for alias, array in zip(sorted(answer), expected, strict=True):
        np.testing.assert_allclose(answer[alias], array, atol=1e-6)
    wire: list[float] = []
    session: list[float] = []
    function: list[float] = []
    for _ in range(ROUNDS):
        wire += await timed_ms_async(lambda: client.predict(1, "rank", inputs, 10.0), CALLS_PER_ROUND)
        session += timed_ms(lambda: session_call(inputs), CALLS_PER_ROUND)
        function += timed_ms(lambda: function_call(inputs), CALLS_PER_ROUND // 4)
    return {
        "predict_p50_ms": p(wire, 50),
        "predict_p99_ms": p(wire, 99),
        "in_process_session_p50_ms": p(session, 50),
        "in_process_function_p50_ms": p(function, 50),
        "predict_overhead_ms": round(p(wire, 50) - p(session, 50), 3),
    }


async def swaps(client: ModelClient, base: Path, exported: Path, shopper: Inputs) -> dict[str, float]:
    """A paced load without and with swaps, in turns. Each request names the newest version known, as the scorer does."""
    newest = (await client.versions())[0]
    failed = 0
    done = False

    async def watch() -> None:
        nonlocal newest
        while not done:
            newest = (await client.versions())[0]
            await asyncio.sleep(0.1)

    async def one(into: list[float]) -> None:
        nonlocal failed
        began = time.perf_counter()
        try:
            await client.predict(newest, "rank", shopper, 10.0)
        except Exception as error:
            failed += 1
            print(f"failed: {error}", file=sys.stderr)
        into.append((time.perf_counter() - began) * 1e3)

    async def load(into: list[float], until: asyncio.Event) -> None:
        """A request every 1/LOAD_RPS s, whatever became of the one before."""
        running: set[asyncio.Task[None]] = set()
        due = time.perf_counter()
        while not until.is_set():
            task = asyncio.create_task(one(into))
            running.add(task)
            task.add_done_callback(running.discard)
            due += 1 / LOAD_RPS
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
        await asyncio.gather(*running)

    async def during(into: list[float], work: Awaitable[None]) -> float:
        until = asyncio.Event()
        loading = asyncio.create_task(load(into, until))
        began = time.perf_counter()
        await work
        seconds = time.perf_counter() - began
        until.set()
        await loading
        return seconds

    async def swap() -> None:
        for _ in range(SWAPS_PER_ROUND):
            version = newest + 1
            half = base / f".tmp-{version}"
            await asyncio.to_thread(shutil.copytree, exported, half, copy_function=os.link)
            half.rename(base / str(version))
            while newest != version:  # noqa: ASYNC110  # another process's state
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.3)  # the oldest one goes

    async def many(answered: list[float]) -> None:
        while len(answered) < WARM_REQUESTS:  # noqa: ASYNC110  # another process's answers
            await asyncio.sleep(0.02)

    watching = asyncio.create_task(watch())
    steady: list[float] = []
    swapping: list[float] = []
    swap_s = 0.0
    warm: list[float] = []
    await during(warm, many(warm))
    for _ in range(ROUNDS):
        await during(steady, asyncio.sleep(STEADY_S))
        swap_s += await during(swapping, swap())
    done = True
    await watching
    return {
        "swaps": ROUNDS * SWAPS_PER_ROUND,
        "swap_failed": failed,
        "swap_s_each": round(swap_s / ROUNDS / SWAPS_PER_ROUND, 2),
        "steady_requests": len(steady),
        "swap_requests": len(swapping),
        "steady_p50_ms": p(steady, 50),
        "steady_p99_ms": p(steady, 99),
        "swap_p50_ms": p(swapping, 50),
        "swap_p99_ms": p(swapping, 99),
        "swap_max_ms": p(swapping, 100),
        "swap_p99_ratio": round(p(swapping, 99) / p(steady, 99), 2),
    }


async def measure(address: str, base: Path, exported: Path, parts: str) -> dict[str, Any]:
    found: dict[str, Any] = {"load_average": os.getloadavg()[0]}
    async with ModelClient(Settings(model_server=address, model_name=MODEL)) as client:
        while not await client.versions():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        if "overhead" in parts:
            found |= await overhead(client, exported)
        if "swaps" in parts:
            found |= await swaps(client, base, exported, request_inputs())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="only the JSON object")
    parser.add_argument("--parts", default="overhead,swaps")
    parser.add_argument("--server", nargs=argparse.REMAINDER, default=[], help="further flags of the server")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        exported, base = Path(folder, "exported"), Path(folder, "models", MODEL)
        export(exported)
        base.mkdir(parents=True)
        shutil.copytree(exported, base / "1", copy_function=os.link)
        address = f"127.0.0.1:{free_port()}"
        process = start_server(folder, address.split(":")[1], arguments.server)
        try:
            grpc.channel_ready_future(grpc.insecure_channel(address)).result(timeout=60)
            found = asyncio.run(measure(address, base, exported, arguments.parts))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=30)
    if not arguments.json:
        for key, value in found.items():
            print(f"{key:28} {value}")
    print(json.dumps(found))


def start_server(folder: str, port: str, flags: list[str]) -> subprocess.Popen[bytes]:
    environ = os.environ | {
        "LIVESHELF_DATA_DIR": folder,
        "LIVESHELF_MODEL_SERVER_PORT": port,
        "LIVESHELF_MODEL_SERVER_METRICS_PORT": str(free_port()),
    }
    with Path(folder, "log").open("wb") as log:
        return subprocess.Popen([sys.executable, "-m", "serving.model_server", *flags], env=environ, stderr=log)


if __name__ == "__main__":
    main()
