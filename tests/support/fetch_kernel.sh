#!/bin/sh
# Fetches Debian's kernel for tests/kernel: downloads the package and unpacks, without installing
# it, the kernel itself and the modules that a machine with bcache needs. Does nothing when it is
# there already.
#
#   sh tests/support/fetch_kernel.sh FOLDER
#
# FOLDER then holds `vmlinux` (or `vmlinuz`), `modules/*.ko` and, written last, `version`.
set -eu
folder=$1
[ -e "$folder/version" ] && exit 0
if ! command -v apt-get >/dev/null; then
  echo "fetch_kernel: no apt-get here; the tests under tests/kernel need Debian's kernel" >&2
  exit 1
fi

latest() { # the package that linux-image-amd64 stands for
  apt-cache depends linux-image-amd64 2>/dev/null |
    sed -n 's/.*Depends: \(linux-image-[^ ]*-amd64\)$/\1/p' | head -n 1
}
package=$(latest)
if [ -z "$package" ]; then
  apt-get update -qq >/dev/null </dev/null
  package=$(latest)
fi
if [ -z "$package" ]; then
  echo "fetch_kernel: apt knows no linux-image-amd64; run apt-get update, or use Debian" >&2
  exit 1
fi

mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
work=$(mktemp -d "$folder/fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"
echo "fetch_kernel: downloading $package"
# The sandbox user of apt could not write here.
apt-get download -qq -o APT::Sandbox::User=root "$package" >/dev/null
mkdir tree
# Where a virtual machine's disks, bcache and all they depend on may be.
dpkg-deb --fsys-tarfile ./*.deb | tar -x -C tree --wildcards \
  './boot/vmlinuz-*' '*/kernel/arch/x86/crypto/*' '*/kernel/block/*' '*/kernel/crypto/*' \
  '*/kernel/drivers/block/*' '*/kernel/drivers/md/*' '*/kernel/drivers/virtio/*' '*/kernel/lib/*'
find tree -name '*.ko.xz' -exec xz -d {} +
mkdir -p modules
find tree -name '*.ko' -exec mv {} modules/ \;
mv tree/boot/vmlinuz-* vmlinuz
# The ELF image inside boots without unpacking itself under emulation, which takes seconds.
at=$(LC_ALL=C grep -abo -m 1 -P '\xfd7zXZ\x00' vmlinuz | head -n 1 | cut -d: -f1) || at=""
if [ -n "$at" ]; then
  tail -c "+$((at + 1))" vmlinuz | xz -dc --single-stream >vmlinux 2>/dev/null || rm -f vmlinux
fi
rm -rf "$folder/modules"
mv modules "$folder/modules"
[ ! -e vmlinux ] || mv vmlinux "$folder/vmlinux"
mv vmlinuz "$folder/vmlinuz"
echo "$package" >version
mv version "$folder/version"
