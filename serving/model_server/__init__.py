"""A small model server with TensorFlow Serving's own gRPC API, for machines without Docker; `python -m serving.model_server`.

    config.py     ModelServerConfig (TensorFlow Serving's text proto) or the one model of the settings
    versions.py   pure: which versions a policy wants, and what to load or unload next
    servable.py   one loaded version: a SavedModel in a TensorFlow session
    manager.py    watches the base paths, loads and unloads, hands out versions
    services.py   PredictionService and ModelService
    app.py        gRPC, health, /healthz and /metrics, signals

Status codes and messages are TensorFlow Serving's (comments name its source files), so that clients cannot tell the two apart.
"""
