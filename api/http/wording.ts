/**
 * Advice of the command line in words of the HTTP API. Errors come from rooms that know neither;
 * they name the commands, since most who read them typed one. Who talks HTTP is told the routes.
 */

/** From the longest on: a later one may be the beginning of an earlier one. */
const ROUTE_OF_COMMAND: ReadonlyArray<readonly [RegExp, string]> = [
  [/bcache-fuse volume destroy MOUNTPOINT (\w+)/g, "DELETE /v1/volumes/$1"],
  [/bcache-fuse volume create MOUNTPOINT SIZE/g, "POST /v1/volumes"],
  [/bcache-fuse volume destroy\b/g, "DELETE /v1/volumes/NAME"],
  [/bcache-fuse detach MOUNTPOINT (\w+)/g, "POST /v1/devices/$1/detach"],
  [/bcache-fuse attach MOUNTPOINT BACKING --force/g, 'POST /v1/devices with "force":true'],
  [/bcache-fuse attach MOUNTPOINT BACKING/g, "POST /v1/devices"],
  [/bcache-fuse forget MOUNTPOINT ([\w-]+) --force/g, "DELETE /v1/uuids/$1?force=true"],
  [/bcache-fuse uuids MOUNTPOINT/g, "GET /v1/uuids"],
  [/bcache-fuse get MOUNTPOINT/g, "GET /v1/attributes"],
  [/--force, over HTTP /g, ""],
  [/\buse --force\b/g, 'use "force":true (?force=true for DELETE)'],
];

/** The same text; commands that no route answers to (`make`, `show`) stay. */
export function httpWording(text: string): string {
  return ROUTE_OF_COMMAND.reduce(
    (before, [command, route]) => before.replace(command, route),
    text,
  );
}
