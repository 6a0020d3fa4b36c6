#!/bin/sh
# The self-test of tools/linux-demo where Debian's packages are installed, or unpacked at PAGESAW_GUESTS
# (--test_env=PAGESAW_GUESTS=DIR); nothing elsewhere.
set -eu
probe=$1
shift
root=${PAGESAW_GUESTS:-}
if ! ls "$root"/boot/vmlinuz-*-cloud-amd64 >/dev/null 2>&1; then
  echo "skipped: no $root/boot/vmlinuz-*-cloud-amd64 (package linux-image-cloud-amd64)"
  exit 0
fi
exec tools/linux-demo --self-test --root="${root:-/}" --binaries=control --probe="$probe" "$@"
