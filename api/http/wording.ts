/**
 * Words of the HTTP API. Errors come from rooms that know neither it nor the command line; they
 * name the commands, since most who read them typed one: who talks HTTP is told the routes. And
 * what the validator finds is said as everything else is.
 */

/** From the longest on: a later one may be the beginning of an earlier one. */
const ROUTE_OF_COMMAND: ReadonlyArray<readonly [RegExp, string]> = [
  [/bcache-fuse volume destroy MOUNTPOINT (\w+)/g, "DELETE /v1/volumes/$1"],
  [/bcache-fuse volume resize --force, over HTTP "force"/g, 'PUT /v1/volumes/NAME/size "force"'],
  [/bcache-fuse volume destroy --force, over HTTP \?/g, "DELETE /v1/volumes/NAME?"],
  [/bcache-fuse stop --force, over HTTP "force"/g, 'POST /v1/devices/NAME/stop "force"'],
  [/bcache-fuse volume create MOUNTPOINT SIZE/g, "POST /v1/volumes"],
  [/bcache-fuse volume destroy\b/g, "DELETE /v1/volumes/NAME"],
  [/bcache-fuse detach MOUNTPOINT (\w+)/g, "POST /v1/devices/$1/detach"],
  [/bcache-fuse attach MOUNTPOINT BACKING --force/g, 'POST /v1/devices with "force":true'],
  [/bcache-fuse attach MOUNTPOINT BACKING/g, "POST /v1/devices"],
  [/bcache-fuse forget MOUNTPOINT ([\w-]+) --force/g, "DELETE /v1/uuids/$1?force=true"],
  [/bcache-fuse uuids MOUNTPOINT/g, "GET /v1/uuids"],
  [/bcache-fuse get MOUNTPOINT/g, "GET /v1/attributes"],
  [
    /the cache set is read-only; nothing was changed$/g,
    "the cache set is read-only; nothing was changed: mount it without --read-only",
  ],
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

/** What the validator found: its own words, and what it is about. */
export interface Issue {
  readonly code: string;
  readonly path: readonly PropertyKey[];
  readonly message: string;
  readonly expected?: unknown;
  readonly values?: readonly unknown[];
  readonly keys?: readonly string[];
  readonly maximum?: unknown;
  readonly minimum?: unknown;
}

const KINDS: Readonly<Record<string, string>> = {
  string: "a text",
  number: "a number",
  int: "a whole number",
  boolean: "true or false",
  object: "an object",
  array: "a list",
};

/** What was expected, and found. A message of our own in the schema stays as it is. */
export function issueWording(issue: Issue): string {
  const { code, message } = issue;
  if (!/^(Invalid (input|option)|Unrecognized|Too (big|small))/.test(message)) return message;
  switch (code) {
    case "invalid_type": {
      const expected = `expected ${KINDS[String(issue.expected)] ?? String(issue.expected)}`;
      const found = /received (\w+)$/.exec(message)?.[1];
      if (found === undefined || found === issue.expected) return expected;
      return found === "undefined"
        ? `missing, ${expected}`
        : `${expected}, found ${KINDS[found] ?? found}`;
    }
    case "invalid_value":
      return `expected one of ${(issue.values ?? []).join(", ")}`;
    case "invalid_union":
      return "expected a text, a number, true or false";
    case "unrecognized_keys":
      return `${issue.keys?.map((key) => JSON.stringify(key)).join(", ")} means nothing here`;
    case "too_big":
      return `expected at most ${String(issue.maximum)}${ofText(issue)}`;
    case "too_small":
      return `expected at least ${String(issue.minimum)}${ofText(issue)}`;
    default:
      return message;
  }
}

function ofText({ message }: Issue): string {
  return message.includes("characters") ? " characters" : "";
}
