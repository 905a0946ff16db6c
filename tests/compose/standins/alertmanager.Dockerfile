# Stands in for prom/alertmanager: Debian's build of the same server, under the stock image's paths.
FROM debian:bookworm-slim
COPY prometheus-alertmanager /bin/alertmanager
COPY wget /bin/
# Debian keeps what upstream compiles in beside the program.
COPY default.tmpl email.tmpl /usr/share/prometheus/alertmanager/
RUN mkdir -p /etc/alertmanager /alertmanager && chown 65534:65534 /alertmanager
USER 65534
ENTRYPOINT ["/bin/alertmanager"]
