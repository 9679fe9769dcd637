#!/bin/sh
# Writes dist/: the program as JavaScript, for runtimes that take no TypeScript from packages.
set -eu
cd "$(dirname "$0")/../../.."
rm -rf dist
node_modules/.bin/tsc -p tests/support/package/tsconfig.json
cp package.json dist/package.json
