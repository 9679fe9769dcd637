#!/bin/sh
# Installs what is missing: the npm packages always, and the Debian packages that the named purposes
# need (demo, test, bench, kernel) when run as root. Quick when nothing is missing. Needs Node and npm.
#
#   sh tests/support/install.sh [demo] [test] [bench] [kernel]
set -eu
cd "$(dirname "$0")/../.."
PATH="$PATH:/usr/sbin:/sbin"

# npm keeps its own record of what it installed; ours names the lock file it was made from.
stamp=node_modules/.installed-lock
if ! cmp -s package-lock.json "$stamp"; then
  if ! command -v npm >/dev/null; then
    echo "install: npm is missing; install Node 20 or newer, which brings it" >&2
    exit 1
  fi
  echo "install: npm packages"
  # Not `npm ci`: it would remove node_modules under the feet of whatever runs from it, and it
  # refuses a lock file that leaves out optional packages of other systems, as ours may.
  npm install --no-save --no-audit --no-fund --loglevel=error
  cp package-lock.json "$stamp"
fi
for runtime in bun deno; do
  if ! "node_modules/.bin/$runtime" --version >/dev/null 2>&1; then
    echo "install: $runtime does not start; remove node_modules and try again" >&2
    exit 1
  fi
done

packages=""
kernel=""
need() { # need PACKAGE COMMAND: asks for the package when the command is missing
  command -v "$2" >/dev/null || packages="$packages $1"
}
for purpose in "$@"; do
  case $purpose in
    demo) need e2fsprogs mkfs.ext4; need mount losetup; need fuse3 fusermount3 ;;
    test)
      need e2fsprogs mkfs.ext4; need mount losetup; need fuse3 fusermount3
      need xfsprogs xfs_repair; need btrfs-progs btrfs; need fio fio
      need bcache-tools bcache-super-show; need xz-utils xz; need git git ;;
    bench) need fio fio; need fuse3 fusermount3; need qemu-system-common qemu-storage-daemon ;;
    kernel)
      kernel=yes
      need qemu-system-x86 qemu-system-x86_64; need busybox-static busybox; need xz-utils xz
      need bcache-tools make-bcache ;;
    *) echo "install: unknown purpose $purpose; use demo, test, bench or kernel" >&2; exit 2 ;;
  esac
done
if [ -n "$packages" ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "install: Debian packages$packages"
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086 # a list of words
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends $packages; } \
      >/dev/null </dev/null
  else
    echo "install: missing$packages; install them as root to run everything" >&2
  fi
fi
# Without these the kernel offers neither /dev/fuse nor loop devices; built in on many machines.
if [ "$(id -u)" = 0 ] && command -v modprobe >/dev/null; then
  for module in fuse loop xfs btrfs; do modprobe -q "$module" 2>/dev/null || true; done
fi
# Unpacked beside npm's packages, not installed. Where it cannot be had, tests/kernel fails and says
# so; everything else can be tested all the same.
if [ -n "$kernel" ]; then
  sh tests/support/fetch_kernel.sh node_modules/.cache/bcache-kernel ||
    echo "install: the Linux kernel for tests/kernel could not be fetched" >&2
fi
