# Stands in for tensorflow/serving, whose binary no package has: our own model server, under the stock image's command line.
FROM debian:bookworm-slim AS shell
FROM liveshelf/model-server:0.1.0
USER 0
COPY --from=shell /bin/bash /bin/bash
COPY --from=shell /bin/ls /bin/ls
COPY --from=shell /lib/x86_64-linux-gnu/ /lib/x86_64-linux-gnu/
COPY tensorflow-serving-entrypoint.py /entrypoint.py
ENV PATH=/usr/local/bin:/bin LIVESHELF_HOST=0.0.0.0 LIVESHELF_MODEL_SERVER_PORT=8500 LIVESHELF_MODEL_SERVER_METRICS_PORT=8501
USER 10001:10001
ENTRYPOINT ["python", "/entrypoint.py"]
