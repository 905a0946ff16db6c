#!/bin/bash
# The compose tests as CI runs them: an engine, images, the stack, the suite inside, and nothing left. `make test-compose`.
#
# An engine that answers already is used, with the stock images it pulls. Otherwise one is started here, where images that no registry
# gives are replaced by stand-ins; the output says which.
set -euo pipefail
cd "$(dirname "$0")/../.."
if [ "${LIVESHELF_SKIP_COMPOSE:-}" = 1 ]; then
  echo "compose tests: skipped, because LIVESHELF_SKIP_COMPOSE=1"
  exit 0
fi
began=$SECONDS
state=""
inside=()
finish() {
  local rc=$?
  docker compose --profile '*' down --volumes --remove-orphans > /dev/null 2>&1 || true
  if [ -n "$state" ]; then tests/compose/engine.sh stop "$state"; fi
  echo "compose tests: $((SECONDS - began)) s in all"
  exit $rc
}
if docker info > /dev/null 2>&1 && docker compose version > /dev/null 2>&1; then
  # The suite begins and ends with `down --volumes` of the project that people run: what a shop holds there would be gone.
  if [ -n "$(docker volume ls --quiet --filter label=com.docker.compose.project=liveshelf)" ]; then
    echo "compose tests: not run, a stack of Liveshelf holds data in this engine. To give that up: docker compose down --volumes" >&2
    exit 1
  fi
  trap finish EXIT
  echo "compose tests: the engine at ${DOCKER_HOST:-its usual place}, stock images"
else
  state=$(mktemp -d -t liveshelf-engine-XXXXXX)
  trap finish EXIT
  tests/compose/engine.sh start "$state"
  # shellcheck disable=SC1091
  . "$state/env"
  inside=(ip netns exec "$LIVESHELF_NAMESPACE")
  echo "compose tests: an engine of their own, $((SECONDS - began)) s; stand-ins for these images, which no registry gave:"
  nice -n 10 tests/compose/standins.sh base | sed -u 's/^/  /'
fi
# Compose builds in the order in which services wait for each other; the longest goes beside the rest.
nice -n 10 docker compose build --quiet trainer &
trainer=$!
nice -n 10 docker compose build --quiet
wait $trainer
if [ -n "$state" ]; then
  nice -n 10 docker compose -f tests/compose/images.yml build --quiet
  nice -n 10 tests/compose/standins.sh tensorflow-serving | sed -u 's/^/  /'
fi
echo "compose tests: images after $((SECONDS - began)) s"
docker images --format '  {{.Repository}}:{{.Tag}} {{.Size}}' 'liveshelf/*'
LIVESHELF_STACK=compose "${inside[@]}" .venv/bin/python -m pytest -q -s --tb=short -p no:cacheprovider tests/compose "$@"
