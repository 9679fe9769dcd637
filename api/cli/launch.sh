#!/bin/sh
# The installed `bcache-fuse`: runs mod.ts with whichever runtime is there, Bun first.
# BCACHE_FUSE_RUNTIME=bun or =deno chooses. Package managers install a link to this file.
root=$(realpath "$(dirname "$(readlink -f "$0")")/../..")
PATH=$PATH:$root/node_modules/.bin:$root/../.bin
case ${BCACHE_FUSE_RUNTIME-bun} in
  bun | deno | "") ;;
  *) echo "bcache-fuse: BCACHE_FUSE_RUNTIME=$BCACHE_FUSE_RUNTIME: expected bun or deno" >&2; exit 2 ;;
esac
for runtime in ${BCACHE_FUSE_RUNTIME:-bun deno}; do
  command -v "$runtime" > /dev/null || continue
  case $runtime:$root in
    bun:*) exec bun "$root/mod.ts" "$@" ;;
    # Deno takes no TypeScript from packages; an installed one has JavaScript as well.
    deno:*/node_modules/*)
      exec deno run --quiet --node-modules-dir=manual -A "$root/dist/mod.js" "$@" ;;
    deno:*) exec deno run --quiet --no-check -A "$root/mod.ts" "$@" ;;
  esac
done
if [ -n "$BCACHE_FUSE_RUNTIME" ]; then
  echo "bcache-fuse: $BCACHE_FUSE_RUNTIME was not found; install it, or unset BCACHE_FUSE_RUNTIME" >&2
  exit 1
fi
echo "bcache-fuse: neither bun nor deno was found; install one: npm install --global bun" >&2
exit 1
