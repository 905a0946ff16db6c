#!/bin/bash
# KAFKA_A_B=x is a.b=x; within a name __ is _ and ___ is -, as in the stock image. Like that one it writes its configuration into
# /opt/kafka/config and the Java machine's own log into /opt/kafka/logs.
set -eu
properties=/opt/kafka/config/server.properties
env | grep '^KAFKA_' | grep -v -E '^KAFKA_(HEAP_OPTS|OPTS|LOG4J_)' | while IFS='=' read -r name value; do
  key=${name#KAFKA_}
  key=${key//___/$'\x01'}
  key=${key//__/$'\x02'}
  key=${key//_/.}
  key=${key//$'\x01'/-}
  key=${key//$'\x02'/_}
  echo "${key,,}=$value"
done > "$properties"
java=(/opt/java/bin/java "-Dlog4j2.configurationFile=/opt/kafka/log4j2.properties" --enable-native-access=ALL-UNNAMED
  --sun-misc-unsafe-memory-access=allow -cp "/opt/kafka/libs/*")
"${java[@]}" kafka.tools.StorageTool format --ignore-formatted --cluster-id "${CLUSTER_ID:-5L6g3nShT-eMCtK--X86sw}" --config "$properties"
# shellcheck disable=SC2086
exec "${java[0]}" ${KAFKA_HEAP_OPTS:-} -Xlog:gc:file=/opt/kafka/logs/gc.log -XX:TieredStopAtLevel=1 -XX:+UseSerialGC "${java[@]:1}" kafka.Kafka "$properties"
