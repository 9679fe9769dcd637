/** docs/parity.md is true: every behaviour of the kernel has a place and a test that is there. */
import { test } from "bun:test";
import { assert, assertEquals } from "@std/assert";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";

const FAULTS = 56;
/** The entries at the head of the kernel's btree.c. */
const TO_DO_ITEMS = 21;

interface Row {
  readonly behaviour: string;
  readonly where: string;
  /** The last column, cut at its semicolons. */
  readonly shown: readonly string[];
}

const top = join(import.meta.dirname!, "..");
const rows = readRows(readFileSync(join(top, "docs/parity.md"), "utf8"));

function readRows(text: string): Row[] {
  return text.split("\n")
    .filter((line) => line.startsWith("| ") && !/^\| (behaviour|---) \|/.test(line))
    .map((line) => {
      const cells = line.split("|").map((cell) => cell.trim());
      assertEquals(cells.length, 5, `three columns: ${line}`);
      const [, behaviour, where, shown] = cells as [string, string, string, string];
      // A semicolon inside a code span belongs to the title.
      const parts = shown.match(/(?:``.*?``|`[^`]*`|[^;`])+/g) ?? [];
      return { behaviour, where, shown: parts.map((part) => part.trim()) };
    });
}

/** The test that a part of the last column names. */
function testNamed(part: string): { file: string; title: string } | undefined {
  const found = /^(`+) ?(tests\/\S+_test\.ts): (.+?) ?\1$/.exec(part);
  return found === null ? undefined : { file: found[2]!, title: found[3]! };
}

/** Whether a test or group of that title is in `source`; `…` stands for what a template inserts. */
function hasTest(source: string, title: string): boolean {
  const words = title.split("…").map((literal) =>
    literal.replaceAll(/[$()*+.?[\\\]^{|}]/g, "\\$&")
  );
  const pattern = words.join("\\$\\{(?:[^{}]|\\{[^{}]*\\})*\\}");
  return new RegExp(`\\b(?:test\\w*|describe)\\b[^"'\`;]{0,80}(["'\`])${pattern}\\1`).test(source);
}

const sources = new Map<string, string>();
function sourceOf(file: string): string {
  const source = sources.get(file) ?? readFileSync(join(top, file), "utf8");
  sources.set(file, source);
  return source;
}

test("every behaviour stands there once, with its place and what shows it", () => {
  assert(rows.length > 300, "the table was read");
  const names = rows.map(({ behaviour }) => behaviour);
  assertEquals(names.filter((name, index) => names.indexOf(name) !== index), []);
  assertEquals(rows.filter(({ where, shown }) => where === "" || shown.length === 0), []);
});

test("what the table says of places is true", () => {
  const wrong = rows.flatMap(({ behaviour, where }) =>
    where === "—"
      ? []
      : where.split(", ").filter((place) =>
        !/^`(lib|fuse|api|docs)\/\S+`$/.test(place) ||
        !existsSync(join(top, place.slice(1, -1)))
      )
        .map((place) => `${behaviour}: ${place}`)
  );
  assertEquals(wrong, []);
});

test("no behaviour is open: tests that are there show it, or it cannot arise for a reason", () => {
  const wrong: string[] = [];
  for (const { behaviour, shown } of rows) {
    for (const part of shown) {
      const named = testNamed(part);
      if (named === undefined) {
        if (/^(does not arise|differs): \S/.test(part)) continue;
        wrong.push(`${behaviour}: ${part}`);
      } else if (!existsSync(join(top, named.file))) wrong.push(`${behaviour}: ${named.file}`);
      else if (!hasTest(sourceOf(named.file), named.title)) wrong.push(`${behaviour}: ${part}`);
    }
  }
  assertEquals(wrong, []);
});

test("what differs on purpose is shown by a test as well", () => {
  const bare = rows.filter(({ shown }) =>
    shown[0]!.startsWith("differs") && !shown.some((part) => testNamed(part) !== undefined)
  );
  assertEquals(bare.map(({ behaviour }) => behaviour), []);
});

test("every known fault and every entry of the to-do list has its row", () => {
  const faults = rows.map(({ behaviour }) => /^Fault (\d+): /.exec(behaviour)?.[1])
    .filter((number) => number !== undefined).map(Number);
  assertEquals(faults, Array.from({ length: FAULTS }, (_, index) => index + 1));
  assertEquals(rows.filter(({ behaviour }) => behaviour.startsWith("To-do: ")).length, TO_DO_ITEMS);
});

test("regression: a title is found only where a test has it", () => {
  const source = 'test("a b", () => {});\ntest(\n  `c ${d.e("f")} g (h)`,\n);\nconst x = "a c";';
  assert(hasTest(source, "a b"));
  assert(hasTest(source, "c … g (h)"));
  assert(!hasTest(source, "a"));
  assert(!hasTest(source, "a c"));
  assertEquals(testNamed("`tests/a_test.ts: b; c`"), { file: "tests/a_test.ts", title: "b; c" });
});
