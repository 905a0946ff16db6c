# Stands in for oliver006/redis_exporter: Debian's build of the same exporter.
FROM debian:bookworm-slim
COPY prometheus-redis-exporter /redis_exporter
COPY wget /bin/
USER 59000
ENTRYPOINT ["/redis_exporter"]
