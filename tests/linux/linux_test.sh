#!/bin/sh
# The self-test of tools/linux-demo where Debian's packages are installed, or unpacked at PAGESAW_GUESTS
# (--test_env=PAGESAW_GUESTS=DIR); nothing elsewhere.
set -eu
root=${PAGESAW_GUESTS:-}
if ! ls "$root"/boot/vmlinuz-*-cloud-amd64 >/dev/null 2>&1; then
  echo "skipped: no $root/boot/vmlinuz-*-cloud-amd64 (package linux-image-cloud-amd64)"
  exit 0
fi
binaries=$(mktemp -d -p "${TEST_TMPDIR:-/tmp}")
for file in control/pagesawctl control/pagesawd guests/linux/probe.linux guests/linux/vmm.linux; do
  ln -s "$PWD/$file" "$binaries"
done
exec tools/linux-demo --self-test --root="${root:-/}" --binaries="$binaries" \
  --json="${TEST_UNDECLARED_OUTPUTS_DIR:-$binaries}/linux.json" "$@"
