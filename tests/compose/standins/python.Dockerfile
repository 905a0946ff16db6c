# Stands in for python:3.11-slim: the CPython that runs these tests, where the stock image has its own.
FROM debian:bookworm-slim
ADD python.tar /usr/local/
# The machine's own authorities: on a machine behind a proxy, pip would trust nobody else.
COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
RUN ldconfig && python3 -m ensurepip && ln -sf pip3 /usr/local/bin/pip
