#!/bin/sh
# sh deploy/restore.sh DIR: the volumes from what backup.sh left in DIR. It refuses to overwrite: `docker compose down --volumes` comes first.
set -eu
where=$(cd "$1" && pwd)
image=$(docker compose config --images | grep '^valkey/')
for volume in kafka store data models; do
  if docker volume inspect "liveshelf_$volume" > /dev/null 2>&1; then
    echo "the volume liveshelf_$volume exists; nothing was restored. To give up what it holds: docker compose down --volumes" >&2
    exit 1
  fi
  if [ ! -f "$where/$volume.tar" ]; then
    echo "$where/$volume.tar is missing; nothing was restored" >&2
    exit 1
  fi
done
docker compose up --no-start --no-build  # makes the volumes, with the names and labels that compose expects
for volume in kafka store data models; do
  docker run --rm --user 0 --network none --volume "liveshelf_$volume:/volume" --volume "$where:/backup:ro" --entrypoint tar "$image" \
    --numeric-owner -C /volume -xpf "/backup/$volume.tar"
done
