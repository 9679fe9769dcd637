/** What the commands take as options: the right kinds, and one line for everything else. */
import { describe, test } from "bun:test";
import { assert, assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import {
  fileToWrite,
  flag,
  oneOf,
  parseArguments,
  Refusal,
  seedOption,
  sliceOption,
  text,
  usageOf,
  wholeNumber,
} from "./arguments.ts";
import { alignedRows, counted } from "./lines.ts";

const DECLARED = {
  command: "npm run some",
  about: "Does something.",
  options: {
    seed: seedOption("the seed"),
    count: wholeNumber("how many", { from: 1, to: 9, fallback: 2 }),
    cut: wholeNumber("where"),
    mode: oneOf("the mode", ["fast", "slow"], { takes: "MODE" }),
    name: text("the name", "NAME", (name) => name.toUpperCase()),
    slice: sliceOption("parts"),
    record: fileToWrite("the record"),
    verbose: flag("says more"),
  },
};
const WITH_WORDS = { ...DECLARED, words: { takes: "PART", help: "some", most: 2 } };
const NOTHING = {
  seed: 1,
  count: 2,
  cut: undefined,
  mode: undefined,
  name: undefined,
  slice: undefined,
  record: undefined,
  verbose: false,
};

describe("the options of a command", () => {
  test("have values of their kinds, or what they are when not given", () => {
    assertEquals(parseArguments(DECLARED, []), { values: NOTHING, words: [] });
    const line =
      "--seed 7 --count=9 --cut 0 --mode slow --name=--x --slice 2/3 --record x --verbose";
    assertEquals(parseArguments(DECLARED, line.split(" ")), {
      values: {
        seed: 7,
        count: 9,
        cut: 0,
        mode: "slow",
        name: "--X",
        slice: { number: 2, of: 3 },
        record: "x",
        verbose: true,
      },
      words: [],
    });
    const words = parseArguments(WITH_WORDS, ["a", "--count", "3", "b"]);
    assertEquals(words, { values: { ...NOTHING, count: 3 }, words: ["a", "b"] });
  });

  test("are told by the usage, whatever else is given", () => {
    for (const args of [["--help"], ["-h"], ["--frob", "--count", "x", "--help"]]) {
      assertEquals(parseArguments(DECLARED, args), "help");
    }
    const usage = usageOf(WITH_WORDS);
    assertStringIncludes(usage, "usage: npm run some -- [OPTIONS] [PART]\n");
    assertStringIncludes(usage, "how many, a whole number from 1 to 9 (default 2)\n");
    assertStringIncludes(usage, "  --mode MODE    the mode: fast, slow\n");
    assert(usage.split("\n").every((line) => line.length <= 100));
  });

  const refused: ReadonlyArray<readonly [string, string]> = [
    ["--frob", "there is no option --frob"],
    ["--toString", "there is no option --toString"],
    ["-v", "there is no option -v"],
    ["--count x", '--count: found "x", expected a whole number from 1 to 9'],
    ["--count 0", '--count: found "0", expected a whole number from 1 to 9'],
    ["--count 10", '--count: found "10", expected a whole number from 1 to 9'],
    ["--count -5", '--count: found "-5", expected a whole number from 1 to 9'],
    ["--count 1e0", '--count: found "1e0", expected a whole number from 1 to 9'],
    ["--cut 1.5", '--cut: found "1.5", expected a whole number from 0 on'],
    ["--cut=", "--cut: found nothing, expected a value: --cut N"],
    ["--seed 4294967296", "expected a whole number from 0 to 4294967295"],
    ["--mode frob", '--mode: found "frob", expected one of fast, slow'],
    ["--name", "--name: found nothing, expected a value: --name NAME"],
    ["--name --verbose", "--name: found nothing, expected a value: --name NAME"],
    ["--slice 0/3", '--slice: found "0/3", expected K/N with K from 1 to N'],
    ["--slice 4/3", '--slice: found "4/3", expected K/N with K from 1 to N'],
    ["--slice 2", '--slice: found "2", expected K/N with K from 1 to N'],
    ["--record no/such/folder/x", "expected a file in a folder that is there"],
    ["--verbose=yes", '--verbose: found "yes", expected no value'],
    ["word", 'found "word", expected nothing but options; with npm, options come after "--"'],
  ];
  for (const [line, reason] of refused) {
    test(`refuse ${line}`, () => {
      const { message } = assertThrows(() => parseArguments(DECLARED, line.split(" ")), Refusal);
      assertStringIncludes(message, reason);
      assert(!message.includes("\n"));
    });
  }

  test("refuse more words than there may be", () => {
    const { message } = assertThrows(() => parseArguments(WITH_WORDS, ["a", "b", "c"]), Refusal);
    assertStringIncludes(message, 'found "c", expected 2 of PART at most');
  });
});

test("a number goes with its word, and a table's columns are under each other", () => {
  assertEquals([counted(1, "seed"), counted(2, "seed"), counted(0, "kill")], [
    "1 seed",
    "2 seeds",
    "0 kills",
  ]);
  assertEquals([counted(1, "entry", "entries"), counted(3, "entry", "entries")], [
    "1 entry",
    "3 entries",
  ]);
  assertEquals(
    alignedRows([["what", "runs", "a column"], ["misdirected", 12345, 6]]),
    [
      "what         runs   a column",
      "misdirected  12345         6",
    ],
  );
});
