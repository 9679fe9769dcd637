/** The house rules that a machine can hold: who may import whom, what is banned where, sizes. */
import { test } from "bun:test";
import { assert, assertEquals } from "@std/assert";
import { execFileSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { dirname, join, normalize } from "node:path";
import { modulesNamedIn, withoutLiterals } from "./support/source_text.ts";

/** Imports point from a higher rank to a lower one, or stay inside their own room. */
const RANKS: ReadonlyArray<readonly string[]> = [
  ["lib/base/"],
  ["lib/ondisk/", "lib/device/", "lib/runtime/"],
  ["lib/bset/", "lib/buckets/"],
  ["lib/journal/"],
  ["lib/btree/"],
  ["lib/cache/"],
  ["lib/offline/"],
  ["fuse/", "api/"],
  ["api/cli/"], // The composition root: it brings fuse, the HTTP interface and the engine together.
  ["mod.ts"],
  ["tests/"],
];

const TOP_LEVEL = [
  ".ci",
  ".gitignore",
  "CHANGELOG.md",
  "LICENSE",
  "README.md",
  "api",
  "bunfig.toml",
  "deno.json",
  "docs",
  "fuse",
  "lib",
  "mod.ts",
  "package-lock.json",
  "package.json",
  "tests",
  "tsconfig.json",
];

/** What would make the engine depend on anything but what it was given. */
const BANNED_IN_LIB = [
  "Date.now",
  "new Date",
  "Math.random",
  "setTimeout",
  "setInterval",
  "setImmediate",
  "queueMicrotask",
  "performance.now",
  "crypto.getRandomValues",
  "console",
  "process",
  "Deno",
  "Bun",
];

const top = join(import.meta.dirname!, "..");
const tracked = execFileSync("git", ["-c", "safe.directory=*", "ls-files"], {
  cwd: top,
  encoding: "utf8",
}).split("\n").filter((name) => name !== "" && existsSync(join(top, name)));
const read = (name: string) => readFileSync(join(top, name), "utf8");
const sources = tracked.filter((name) => name.endsWith(".ts"));
const texts = new Map(sources.map((name) => [name, read(name)]));

function textOf(name: string): string {
  const text = texts.get(name);
  assert(text !== undefined, `${name} is a source file`);
  return text;
}

function roomOf(name: string): { rank: number; room: string } {
  let found = { rank: -1, room: "" };
  RANKS.forEach((rooms, rank) => {
    const room = rooms.find((room) => name.startsWith(room));
    if (room !== undefined && room.length >= found.room.length) found = { rank, room };
  });
  return found;
}

/** Every file of the project that `name` imports. */
function importsOf(name: string): string[] {
  return modulesNamedIn(textOf(name))
    .filter((module) => module.startsWith("."))
    .map((module) => normalize(join(dirname(name), module)));
}

function mayImport(from: string, to: string): boolean {
  const upper = roomOf(from);
  const lower = roomOf(to);
  if (upper.rank < 0 || lower.rank < 0) return false;
  // Real clocks and real randomness are for the composition roots: lib is given them.
  if (lower.room === "lib/runtime/" && from.startsWith("lib/")) return upper.room === lower.room;
  return upper.room === lower.room || lower.rank < upper.rank;
}

test("imports point down, from room to lower room", () => {
  const wrong = sources.flatMap((from) =>
    importsOf(from).filter((to) => !mayImport(from, to)).map((to) => `${from} -> ${to}`)
  );
  assertEquals(wrong, []);
  assert(sources.some((name) => importsOf(name).length > 0), "the scan sees imports");
  assert(!mayImport("lib/base/x.ts", "lib/device/y.ts"), "up is refused");
  assert(!mayImport("lib/bset/x.ts", "lib/buckets/y.ts"), "sideways is refused");
  assert(mayImport("lib/btree/x.ts", "lib/bset/y.ts"), "down is allowed");
});

/** Files that import each other, each circle as its way from file to file. */
function circlesIn(names: readonly string[], imports: (name: string) => string[]): string[] {
  const found: string[] = [];
  const done = new Set<string>();
  const way: string[] = [];
  const visit = (name: string): void => {
    const at = way.indexOf(name);
    if (at >= 0) found.push([...way.slice(at), name].join(" -> "));
    if (at >= 0 || done.has(name)) return;
    way.push(name);
    imports(name).forEach(visit);
    way.pop();
    done.add(name);
  };
  names.forEach(visit);
  return found;
}

test("files do not import each other in circles", () => {
  // Types count too: what two files need of each other belongs below both.
  assertEquals(circlesIn(sources, importsOf), []);
  const links: Record<string, string[]> = { a: ["b", "d"], b: ["c"], c: ["b"], d: ["c"] };
  assertEquals(circlesIn(Object.keys(links), (name) => links[name]!), ["b -> c -> b"]);
});

test("every import names a file of the project that is there", () => {
  const missing = sources.flatMap((from) =>
    importsOf(from).filter((to) => !existsSync(join(top, to))).map((to) => `${from} -> ${to}`)
  );
  assertEquals(missing, []);
});

test("in lib only devices and the real clock reach for the platform", () => {
  const wrong: string[] = [];
  for (const name of sources) {
    if (!name.startsWith("lib/")) continue;
    if (["lib/device/", "lib/runtime/"].includes(roomOf(name).room)) continue;
    wrong.push(
      ...modulesNamedIn(textOf(name)).filter((module) => !module.startsWith("."))
        .map((module) => `${name} -> ${module}`),
    );
  }
  assertEquals(wrong, []);
});

function bannedIn(source: string): string[] {
  const code = withoutLiterals(source);
  return BANNED_IN_LIB.filter((name) => {
    const words = name.replaceAll(".", "\\s*\\.\\s*").replaceAll(" ", "\\s+");
    // Not a member, not a property name: `this.process`, `process: …` are somebody's own.
    return new RegExp(`(?<![\\w$.#])${words}(?![\\w$]|\\s*\\??:)`).test(code);
  });
}

test("lib uses no clock, timer, randomness or console of its own", () => {
  const wrong = sources.filter((name) => name.startsWith("lib/"))
    .filter((name) => !["lib/runtime/", "lib/device/"].includes(roomOf(name).room))
    .flatMap((name) => bannedIn(textOf(name)).map((word) => `${name}: ${word}`));
  assertEquals(wrong, []);
  assertEquals(bannedIn('a = "setTimeout"; // Date.now()\nb.console = 1;'), []);
  assertEquals(bannedIn("const t = Date . now() / 2; `${setTimeout(x)}`"), [
    "Date.now",
    "setTimeout",
  ]);
});

test("lib leaves alone what takes another number of turns on another runtime", () => {
  const wrong = sources.filter((name) => name.startsWith("lib/"))
    .filter((name) => /\.\s*finally\s*\(/.test(withoutLiterals(textOf(name))));
  assertEquals(wrong, [], "endingWith of lib/base/sync.ts does what Promise.finally does");
});

test("lines have at most 100 columns and files at most 600 lines", () => {
  const wrong: string[] = [];
  for (const name of sources) {
    const lines = textOf(name).split("\n");
    if (lines.length > 601) wrong.push(`${name}: ${lines.length - 1} lines`);
    lines.forEach((line, at) => {
      if (line.length > 100) wrong.push(`${name}:${at + 1}: ${line.length} columns`);
    });
  }
  assertEquals(wrong, []);
});

test("the linter holds functions to 70 lines and forgets no promise", () => {
  const { rules } = JSON.parse(read("tests/oxlint.json"));
  assertEquals(rules["max-lines-per-function"][1].max, 70);
  for (const rule of ["no-floating-promises", "no-misused-promises", "await-thenable"]) {
    assertEquals(rules[`typescript/${rule}`], "error");
  }
});

test("every file but a test begins by saying what it is", () => {
  const wrong = sources.filter((name) => !name.endsWith("_test.ts")).filter((name) => {
    const text = textOf(name).replace(/^(#!.*\n|\/\/ deno-lint-ignore-file.*\n|\s*\n)+/, "");
    return !/^(\/\*\*|\/\/ )/.test(text);
  });
  assertEquals(wrong, []);
});

test("every file is reached from the program, a test or a command", () => {
  const scripts = Object.values(JSON.parse(read("package.json")).scripts).join(" ") + " " +
    read("deno.json") + tracked.filter((name) => name.endsWith(".sh")).map(read).join(" ");
  const seen = new Set<string>();
  const visit = (name: string) => {
    if (seen.has(name) || !texts.has(name)) return;
    seen.add(name);
    importsOf(name).forEach(visit);
    // A test also runs programs and loads modules that it names.
    if (!name.startsWith("tests/")) return;
    for (const [, file] of textOf(name).matchAll(/"(?:\.\/)?(\w+\.ts)"/g)) {
      visit(`${name.slice(0, name.lastIndexOf("/"))}/${file}`);
    }
  };
  // Tests do not make a file of the product live: what only its test imports is dead.
  visit("mod.ts");
  assertEquals(sources.filter((name) => /^(lib|fuse|api)\//.test(name) && !seen.has(name)), []);
  sources.filter((name) => name.endsWith("_test.ts") || scripts.includes(name)).forEach(visit);
  assertEquals(
    sources.filter((name) => name.startsWith("tests/") && !name.endsWith(".d.ts"))
      .filter((name) => !seen.has(name)),
    [],
  );
});

test("nothing is left marked as broken", () => {
  const marks = new RegExp(["FIX" + "ME", "X" + "XX", "TO" + "DO(?!\\(#\\d+\\))"].join("|"));
  assertEquals(sources.filter((name) => marks.test(textOf(name))), []);
});

test("no tracked file names somebody's machine or package host", () => {
  const secrets = new RegExp([
    "(?<![\\w./-])/(work|root|home)/[a-z]",
    "registry\\.[a-z]",
    "npm" + "js\\.org",
    "jsr\\.io",
    '"resolved":',
  ].join("|"));
  const wrong = tracked.filter((name) => !name.startsWith("tests/fixtures/"))
    .filter((name) => name !== "tests/tidy_test.ts" && secrets.test(read(name)));
  assertEquals(wrong, []);
});

test("the top level holds what it should and nothing else", () => {
  const found = [...new Set(tracked.map((name) => name.split("/")[0]!))].sort();
  assertEquals(found, TOP_LEVEL);
});

test("deno.json and tsconfig.json agree on the compiler's options", () => {
  const deno = JSON.parse(read("deno.json")).compilerOptions;
  const tsc = JSON.parse(read("tsconfig.json")).compilerOptions;
  const shared = Object.fromEntries(Object.keys(deno).map((name) => [name, tsc[name]]));
  assertEquals(shared, deno);
  assertEquals(deno.strict, true);
});

test("every command installs what it runs with before", () => {
  const scripts: Record<string, string> = JSON.parse(read("package.json")).scripts;
  const names = Object.keys(scripts).filter((name) => !name.startsWith("pre"));
  assert(names.length > 10);
  const bare = names.filter((name) =>
    !scripts[`pre${name}`]?.startsWith("sh tests/support/install.sh")
  );
  assertEquals(bare, []);
});

test("every command the README shows exists", () => {
  const readme = read("README.md");
  const scripts = Object.keys(JSON.parse(read("package.json")).scripts);
  const asked = [...readme.matchAll(/\bnpm (?:run ([\w:]+)|(start|test)\b)/g)]
    .map((match) => match[1] ?? match[2]!);
  assert(asked.includes("start") && asked.includes("test"), "the README names the two commands");
  assertEquals(asked.filter((name) => !scripts.includes(name)), []);

  const cli = sources.filter((name) => name.startsWith("api/cli/")).map(textOf).join("\n");
  const shown = [...readme.matchAll(/^(?:\$ |sudo )*bcache-fuse ([a-z]+)(.*)$/gm)];
  assert(shown.length > 0, "the README shows the command line");
  const unknown = shown.flatMap(([, command, rest]) =>
    [`"${command}`, ...(rest!.match(/--[a-z][a-z-]+/g) ?? [])]
      .filter((word) => !cli.includes(word))
  );
  assertEquals(unknown, []);
});
