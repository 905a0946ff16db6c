# Stands in for prom/prometheus: Debian's build of the same server, under the stock image's paths.
FROM debian:bookworm-slim
COPY prometheus wget /bin/
RUN mkdir -p /etc/prometheus /prometheus && chown 65534:65534 /prometheus
USER 65534
WORKDIR /prometheus
ENTRYPOINT ["/bin/prometheus"]
CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]
