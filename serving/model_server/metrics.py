"""What Prometheus sees of the model server."""

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter("liveshelf_model_server_requests", "Requests answered", ["method", "model", "code"])
PREDICT_SECONDS = Histogram(
    "liveshelf_model_server_predict_seconds",
    "Predict inside the server, successful requests",
    ["model", "signature"],
    # the scorer gives the model 100 ms; ranking 500 candidates takes well under one
    buckets=(0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5),
)
POLLS = Counter("liveshelf_model_server_polls", "Looks at the model directories, each with all that followed from it")
LOADS = Counter("liveshelf_model_server_loads", "Versions loaded", ["model", "outcome"])
LOAD_SECONDS = Histogram(
    "liveshelf_model_server_load_seconds", "Load and warm-up of one version", ["model"], buckets=(0.1, 0.3, 1, 3, 10, 30)
)
AVAILABLE_VERSIONS = Gauge("liveshelf_model_server_available_versions", "Versions that can be asked now", ["model"])
LATEST_VERSION = Gauge("liveshelf_model_server_latest_version", "Highest version that can be asked now; 0: none", ["model"])
BATCH_ROWS = Histogram(
    "liveshelf_model_server_batch_rows",
    "Rows of a batch before padding, when requests are batched",
    ["model"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
)
