"""A small model server with TensorFlow Serving's own gRPC API, for machines without Docker; `python -m serving.model_server`.

    config.py     ModelServerConfig (TensorFlow Serving's text proto) or the one model of the settings
    versions.py   pure: which versions a policy wants, and what to load or unload next
    runtime.py    TensorFlow's C API: load a SavedModel, run it, free it
    warmup.py     the warm-up requests that an exporter leaves beside a SavedModel
    servable.py   one loaded version: its signatures, and a session to run them in
    batching.py   joins concurrent requests, by TensorFlow Serving's parameters file
    manager.py    watches the base paths, loads and unloads, hands out versions
    services.py   PredictionService and ModelService
    app.py        gRPC, health, HTTP (/healthz, /metrics, /v1/models/NAME), signals

Status codes and messages are TensorFlow Serving's (comments name its source files), so that clients cannot tell the two apart.
"""
