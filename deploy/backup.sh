#!/bin/sh
# sh deploy/backup.sh DIR: the volumes of the stack as DIR/{kafka,store,data,models}.tar. The roles stop for as long as it takes: only then do
# log, rows and checkpoints stand at one moment. (Should they not, the agents fold what the store lacks from the log.)
set -eu
mkdir -p "$1"
where=$(cd "$1" && pwd)
image=$(docker compose config --images | grep '^valkey/')  # any image with tar; this one is here already
docker compose stop
for volume in kafka store data models; do
  docker run --rm --user 0 --network none --volume "liveshelf_$volume:/volume:ro" --volume "$where:/backup" --entrypoint tar "$image" \
    --numeric-owner -C /volume -cf "/backup/$volume.tar.part" .
  mv "$where/$volume.tar.part" "$where/$volume.tar"
done
docker compose start
