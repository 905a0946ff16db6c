#!/bin/sh
# Gathers under $1 what a role needs to run, and nothing else: Python, its packages, the shared libraries that these load, certificates and
# time zones. Run in a build stage of deploy/Dockerfile after `pip install`.
set -eu
out=$1
python=$(python3 -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
lib=/usr/local/lib/$python
packages=$lib/site-packages

# What only builds, tests or checks: mypy comes with SQLAlchemy's extra that Feast asks for, Flight comes with pyarrow, lists of its own
# dependencies with Feast.
cd "$packages"
pip uninstall --quiet --yes setuptools wheel 2>/dev/null || true
rm -rf mypy mypyc ./*__mypyc*.so pip pip-*.dist-info feast/ui pyarrow/include pyarrow/src pyarrow/tests \
  pyarrow/libarrow_flight* pyarrow/_flight* pandas/tests numpy/_core/include tensorflow/include clang \
  mypy-*.dist-info requirements
find . -depth -type d \( -name tests -o -name test \) -path '*/numpy/*' -exec rm -rf {} +
find . \( -name '*.pyi' -o -name '*.pxd' -o -name '*.pxi' -o -name '*.pyx' -o -name '*.a' -o -name '*.c' -o -name '*.h' \) -type f -delete
cd "$lib"
rm -rf test ensurepip idlelib lib2to3 pydoc_data tkinter turtledemo config-* lib-dynload/_tkinter* lib-dynload/_test*

mkdir -p "$out/usr/local/bin" "$out/usr/local/lib" "$out/etc/ssl" "$out/usr/share" "$out/tmp" "$out/app"
cp -a "/usr/local/bin/$python" "$out/usr/local/bin/"
ln -s "$python" "$out/usr/local/bin/python"
ln -s "$python" "$out/usr/local/bin/python3"
cp -a /usr/local/bin/liveshelf "$out/usr/local/bin/"
cp -a "$lib" "$out/usr/local/lib/"
cp -a /usr/local/lib/libpython* "$out/usr/local/lib/" 2>/dev/null || true
cp -a /etc/ssl/certs "$out/etc/ssl/"
cp -a /usr/share/ca-certificates /usr/share/zoneinfo "$out/usr/share/"

# A wheel holds no links: the same library lies there under each of its names.
find "$out$packages" -name '*.so.*' -type f | while read -r file; do
  short=${file%.so.*}.so
  for other in "$short" "$short".*; do
    if [ "$other" != "$file" ] && [ -f "$other" ] && [ ! -L "$other" ] && cmp -s "$other" "$file" && [ ${#other} -lt ${#file} ]; then
      ln -sf "$(basename "$file")" "$other"
    fi
  done
done

# Symbols that only debuggers read: a fifth of an image. Not of what auditwheel brought along (*.libs): it moved sections there, and a library
# that is stripped after that no longer loads.
find "$out" -name '*.so*' -type f -not -path '*.libs/*' -exec sh -c 'strip --strip-unneeded "$@" 2> /dev/null || true' strip {} +

# The system's libraries, by their real place, and the loader; what lies under /usr/local is there already.
{
  find "$out/usr/local" -name '*.so*' -type f
  echo "$out/usr/local/bin/$python"
} | xargs ldd 2>/dev/null | awk '$2 == "=>" && $3 ~ /^\// { print $3 } $1 ~ /^\/.*ld-/ { print $1 }' | grep -v "^$out" | grep -v ^/usr/local | sort -u |
  while read -r library; do
    mkdir -p "$out$(dirname "$library")"
    cp -L "$library" "$out$library"
  done
# glibc opens these by name when a host is looked up
for library in libnss_dns.so.2 libnss_files.so.2 libresolv.so.2; do
  for place in /lib/*-linux-gnu; do
    if [ -e "$place/$library" ]; then cp -L "$place/$library" "$out$place/"; fi
  done
done
{
  echo /usr/local/lib
  ls -d /lib/*-linux-gnu
} > "$out/etc/ld.so.conf"
ldconfig -r "$out"

printf 'root:x:0:0::/:/none\nliveshelf:x:10001:10001::/data:/none\n' > "$out/etc/passwd"
printf 'root:x:0:\nliveshelf:x:10001:\n' > "$out/etc/group"
printf 'hosts: files dns\n' > "$out/etc/nsswitch.conf"
chmod 1777 "$out/tmp"
