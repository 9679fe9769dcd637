/** What people and programs send: HTTP requests, answers of a control socket, words, texts. */
import process from "node:process";
import { parseSetting } from "../../api/cli/attributes.ts";
import { main } from "../../api/cli/main.ts";
import { type Program, UsageError } from "../../api/cli/program.ts";
import { printable } from "../../api/cli/format.ts";
import { parseMountInfo } from "../../api/control/mount_table.ts";
import { mountFileStem } from "../../api/control/run_directory.ts";
import { createApp } from "../../api/http/app.ts";
import { hostNameOf } from "../../api/http/guard.ts";
import { errorOfProblem, REQUEST_CODES, STATUS_OF_CODE } from "../../api/http/problem.ts";
import { parseHostPort } from "../../api/http/serve.ts";
import { BcacheError } from "../../lib/base/errors.ts";
import { formatSize, parseSizeBytes } from "../../lib/base/units.ts";
import {
  checkSetting,
  DEVICE_ATTRIBUTES,
  SET_ATTRIBUTES,
} from "../../lib/cache/attributes/tables.ts";
import { decodeLabel, encodeLabel } from "../../lib/ondisk/label.ts";
import { formatUuid, parseUuid } from "../../lib/ondisk/uuid.ts";
import { FakeControl } from "../api/fake_control.ts";
import type { SimRandom } from "../simulation/sim_random.ts";
import { mutateText } from "./mutate.ts";
import { attempt, expect, type FuzzTarget } from "./target.ts";

interface Sample {
  readonly method: string;
  readonly path: string;
  readonly body?: string;
}

const UUID = "99999999-2222-3333-4444-555555555555";
const REQUESTS: readonly Sample[] = [
  { method: "GET", path: "/health" },
  { method: "GET", path: "/openapi.json" },
  { method: "GET", path: "/v1/stats" },
  { method: "GET", path: "/v1/devices/bcache0" },
  { method: "GET", path: "/v1/attributes/journal_delay_ms" },
  { method: "PUT", path: "/v1/attributes/journal_delay_ms", body: '{"value":"7"}' },
  { method: "PUT", path: "/v1/devices/bcache0/attributes/label", body: '{"value":"a"}' },
  { method: "PUT", path: "/v1/devices/bcache0/cache-mode", body: '{"mode":"writeback"}' },
  { method: "PUT", path: "/v1/devices/bcache0/writeback", body: '{"percent":7,"running":true}' },
  { method: "POST", path: "/v1/devices/bcache0/writeback/flush" },
  { method: "POST", path: "/v1/devices", body: '{"backingPath":"/a","force":true}' },
  { method: "POST", path: "/v1/devices/bcache0/detach" },
  { method: "POST", path: "/v1/devices/bcache0/stop", body: '{"force":false}' },
  { method: "POST", path: "/v1/volumes", body: '{"sizeBytes":4096,"label":"l"}' },
  { method: "PUT", path: "/v1/volumes/bcache1/size", body: '{"sizeBytes":8192}' },
  { method: "DELETE", path: "/v1/volumes/bcache1?force=true" },
  { method: "GET", path: "/v1/uuids" },
  { method: "DELETE", path: `/v1/uuids/${UUID}?force=true` },
  { method: "GET", path: "/v1/mount" },
  { method: "POST", path: "/v1/mount/unmount", body: '{"force":true}' },
];
const METHODS = ["GET", "PUT", "POST", "DELETE", "PATCH", "HEAD", "OPTIONS"];
const JSON_PIECES = [
  "{}",
  "[]",
  "null",
  "1e999",
  '{"value":{}}',
  '{"__proto__":{"a":1}}',
  '"\\ud800"',
];
const CODES: ReadonlySet<string> = new Set([
  ...Object.keys(STATUS_OF_CODE),
  ...Object.values(REQUEST_CODES),
]);

function requestOf(random: SimRandom): Request | undefined {
  const sample = random.pick(REQUESTS);
  const method = random.chance(0.9) ? sample.method : random.pick(METHODS);
  const path = random.chance(0.5) ? mutateText(random, sample.path) : sample.path;
  let body = sample.body;
  if (random.chance(0.1)) body = random.pick(JSON_PIECES);
  else if (body !== undefined && random.chance(0.6)) body = mutateText(random, body);
  if (random.chance(0.01)) body = "[".repeat(20_000);
  const headers = new Headers();
  if (random.chance(0.9)) headers.set("content-type", "application/json");
  const host = random.chance(0.8) ? "localhost:8380" : mutateText(random, "localhost:8380");
  try {
    headers.set("host", host);
    if (random.chance(0.2)) headers.set("origin", mutateText(random, "http://localhost:8380"));
    const hasBody = body !== undefined && method !== "GET" && method !== "HEAD";
    const url = `http://localhost:8380${path.startsWith("/") ? "" : "/"}${path}`;
    return new Request(url, { method, headers, ...(hasBody ? { body: body! } : {}) });
  } catch {
    return undefined; // No client can send this.
  }
}

const http: FuzzTarget = {
  name: "http",
  what: "HTTP requests: paths, queries, headers, bodies",
  share: 20,
  prepare: () => async (random) => {
    const request = requestOf(random);
    if (request === undefined) return;
    const control = new FakeControl();
    const app = createApp({
      control: () => control,
      version: "1",
      ...(random.chance(0.5) ? { binding: { host: "127.0.0.1", machineName: "box" } } : {}),
    });
    const response = await app.fetch(request);
    const { status } = response;
    const answer = await response.text();
    if (status >= 200 && status < 300) return;
    if (request.method === "HEAD") return;
    const type = response.headers.get("content-type");
    expect(type === "application/problem+json", `a problem for ${status}, not ${type}`);
    const { code, detail } = JSON.parse(answer) as { code: string; detail: string };
    expect(CODES.has(code) && detail.length > 0, "a code and what is wrong");
    const isBug = /undefined|is not a function|null|of an? /.test(detail) && status === 500;
    expect(!isBug, `no bug behind ${request.method} ${request.url}: ${detail}`);
    errorOfProblem(status, JSON.parse(answer));
  },
};

const ANSWERS = [
  '{"type":"urn:x","title":"t","status":409,"detail":"in use","code":"Busy"}',
  '{"code":"constructor","detail":"x"}',
  '{"attributes":[{"name":"label","value":"a"}]}',
];
const MOUNT_INFO = "36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - fuse.bcache /dev/a rw\n" +
  "37 35 98:1 / /mnt3 rw - ext4 /dev/root rw,errors=continue\n";

const control: FuzzTarget = {
  name: "control",
  what: "answers of a control socket, the kernel's table of mounts, names of state files",
  share: 60,
  prepare: () => (random) => {
    const text = mutateText(random, random.pick(ANSWERS));
    let parsed: unknown;
    try {
      parsed = JSON.parse(text);
    } catch {
      parsed = undefined;
    }
    const error = errorOfProblem(random.pick([200, 400, 409, 500, 0, 999]), parsed);
    expect(error instanceof BcacheError && Number.isInteger(error.errno), "a typed error");
    for (const { mountPoint } of parseMountInfo(mutateText(random, MOUNT_INFO))) {
      const stem = mountFileStem(mountPoint);
      expect(/^[A-Za-z0-9.-]{14,48}$/.test(stem), `a name for a file, not ${stem}`);
    }
  },
};

const NAMES = [...DEVICE_ATTRIBUTES, ...SET_ATTRIBUTES].filter((each) => each.write !== undefined)
  .map((each) => each.name);
const VALUES = ["0", "1", "writeback", "lru", "4.0M", "128k", "auto", "1.5G", "-1", "unregister"];
const SIZES = ["512k", "1.5G", "4096", "9007199254740991", "0.001T", "3MiB", "7 kB"];

/** The value, or undefined when it was refused in one of the two ways there are. */
function refusedOr<T>(body: () => T): T | undefined {
  try {
    const value = attempt(body);
    return value instanceof BcacheError ? undefined : value;
  } catch (error) {
    if (error instanceof UsageError) return undefined;
    throw error;
  }
}

const texts: FuzzTarget = {
  name: "texts",
  what: "sizes, UUIDs, labels, settings, addresses",
  share: 150,
  prepare: () => (random) => {
    const bytes = refusedOr(() => parseSizeBytes(mutateText(random, random.pick(SIZES))));
    expect(bytes === undefined || Number.isSafeInteger(bytes) && bytes >= 0, "a size is exact");
    if (bytes !== undefined) formatSize(bytes);
    const uuid = parseUuid(mutateText(random, UUID));
    if (uuid !== undefined) {
      expect(formatUuid(parseUuid(formatUuid(uuid))!) === formatUuid(uuid), "a UUID stays");
    }
    const label = mutateText(random, "a label");
    const raw = refusedOr(() => encodeLabel(label));
    if (raw !== undefined) {
      expect(raw.length === 32 && decodeLabel(raw).length <= 32, "a label fits");
    }
    const name = random.chance(0.9) ? random.pick(NAMES) : mutateText(random, "label");
    const setting = refusedOr(() =>
      parseSetting(`${name}=${mutateText(random, random.pick(VALUES))}`)
    );
    if (setting !== undefined) refusedOr(() => checkSetting(setting.name, setting.value));
    const address = refusedOr(() => parseHostPort(mutateText(random, "127.0.0.1:8380")));
    expect(address === undefined || address.port <= 65535, "a port is one");
    hostNameOf(mutateText(random, "[::1]:8380"));
  },
};

const COMMANDS: ReadonlyArray<readonly string[]> = [
  ["make", "-C", "/nowhere/c", "-B", "/nowhere/b", "-b", "512k", "-w", "4k", "--writeback"],
  ["make", "-B", "/nowhere/b", "-o", "64", "--label", "text", "--size", "1G", "--sidecar"],
  ["make", "-C", "/nowhere/c", "--cset-uuid", UUID, "--cache-replacement-policy", "fifo"],
  ["show", "/nowhere/c", "--json"],
  ["check", "-C", "/nowhere/c", "-B", "/nowhere/b"],
  ["dump", "/nowhere/c", "journal", "--json"],
  ["extract", "-C", "/nowhere/c", "--volume", "1", "-o", "/nowhere/o", "--rescue"],
  ["writeback", "-C", "/nowhere/c", "-B", "/nowhere/b"],
  ["attach", "/nowhere/m", "/nowhere/b", "--force"],
  ["detach", "/nowhere/m", "bcache0"],
  ["volume", "create", "/nowhere/m", "1G", "--label", "text"],
  ["volume", "resize", "/nowhere/m", "bcache1", "2G", "--force"],
  ["forget", "/nowhere/m", UUID],
  ["status", "/nowhere/m", "--json"],
  ["get", "/nowhere/m", "cache_mode"],
  ["set", "/nowhere/m", "cache_mode", "writeback"],
];

/** Words of one command, some of them changed, left out, doubled. What is named does not exist. */
function wordsOf(random: SimRandom): string[] {
  const words = [...random.pick(COMMANDS)];
  const first = random.chance(0.9) ? 1 : 0;
  const at = Math.min(first + random.below(words.length), words.length - 1);
  const kind = random.below(4);
  if (kind === 0) words.splice(at, 1);
  else if (kind === 1) words.splice(at, 0, words[random.below(words.length)]!);
  else if (words[at]!.startsWith("/nowhere/")) words[at] += printable(mutateText(random, "x"));
  else words[at] = mutateText(random, words[at]!);
  return words;
}

const cli: FuzzTarget = {
  name: "cli",
  what: "the words of a command line",
  share: 20,
  prepare: () => async (random) => {
    const words = wordsOf(random);
    let errors = "";
    const program: Program = {
      version: "1",
      path: "/nowhere/program",
      parts: {
        mount: () => Promise.reject(new BcacheError("NotSupported", "nothing is mounted here")),
        make: () => Promise.resolve("made\n"),
      },
      environment: { uid: process.getuid?.() ?? 0, xdgRuntimeDirectory: "/nowhere/run" },
      isTerminal: false,
      isDaemon: false,
      out: () => {},
      err: (text) => void (errors += text),
      flushed: () => Promise.resolve(),
    };
    const status = await main(words, program);
    expect([0, 1, 2, 4].includes(status), `an exit status of ours, not ${status}`);
    if (status === 0) return;
    const isLine = /^[^\n]+\n$/.test(errors) && !/[^\P{Cc}\n]/u.test(errors);
    expect(isLine, `one line that can be printed, not ${JSON.stringify(errors)}`);
    const isBug = /undefined|is not a function|of null|assertion/.test(errors);
    expect(!isBug, `no bug behind ${JSON.stringify(words)}: ${errors}`);
  },
};

export const API_TARGETS: readonly FuzzTarget[] = [http, control, texts, cli];
