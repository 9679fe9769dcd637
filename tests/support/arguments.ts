/**
 * The options of the project's own commands: each command declares its own, and gets values of the
 * right kind or ends. `--help` prints the usage and ends with 0; what is unknown, missing or out of
 * range is one line and status 2, before anything is done.
 */
// deno-lint-ignore-file no-console
import { existsSync } from "node:fs";
import { dirname } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";

/** Ends the command with one line and status 2 where `argumentsOf` or `refuse` meets it. */
export class Refusal extends Error {}

export interface Option<Value> {
  /** What stands for the value in the usage; undefined: the option takes none. */
  readonly takes: string | undefined;
  readonly help: string;
  /** The value when the option is not given. */
  readonly fallback: Value;
  /** @throws Refusal that says what was expected */
  parse(text: string): Value;
}

type Options = Readonly<Record<string, Option<unknown>>>;
type Values<Of extends Options> = {
  readonly [Name in keyof Of]: Of[Name] extends Option<infer Value> ? Value : never;
};

export interface Declaration<Of extends Options> {
  /** How it is run, as in `npm run fuzz`; the last word names it in refusals. */
  readonly command: string;
  /** What it does, in a sentence or a few. */
  readonly about: string;
  readonly options: Of;
  /** Words that are no options; none are taken when absent. */
  readonly words?: { readonly takes: string; readonly help: string; readonly most: number };
}

export interface Arguments<Of extends Options> {
  readonly values: Values<Of>;
  readonly words: readonly string[];
}

const COLUMNS = 100;
/** The generators take 32 bits: greater seeds would repeat what smaller ones do. */
const SEED_MAX = 2 ** 32 - 1;

function defaultText(fallback: number | string | undefined): string {
  return fallback === undefined ? "" : ` (default ${fallback})`;
}

/** A whole number in a range; without `fallback` the value is undefined when it is not given. */
export function wholeNumber<const Fallback extends number | undefined = undefined>(
  help: string,
  how: { takes?: string; from?: number; to?: number; fallback?: Fallback } = {},
): Option<number | Fallback> {
  const { takes = "N", from = 0, to = Number.MAX_SAFE_INTEGER } = how;
  const range = to === Number.MAX_SAFE_INTEGER ? `${from} on` : `${from} to ${to}`;
  return {
    takes,
    help: `${help}, a whole number from ${range}${defaultText(how.fallback)}`,
    fallback: how.fallback as Fallback,
    parse: (text) => {
      const value = /^\d+$/.test(text) ? Number(text) : -1;
      if (value >= from && value <= to) return value;
      throw new Refusal(`expected a whole number from ${range}`);
    },
  };
}

/** One of a list of words. `shown` is told instead of a list that is long. */
export function oneOf<
  const Word extends string,
  const Fallback extends string | undefined = undefined,
>(
  help: string,
  all: readonly Word[],
  how: { takes: string; shown?: string; fallback?: Fallback },
): Option<Word | Fallback> {
  const shown = how.shown ?? all.join(", ");
  return {
    takes: how.takes,
    help: `${help}: ${shown}${defaultText(how.fallback)}`,
    fallback: how.fallback as Fallback,
    parse: (text) => {
      const word = all.find((each) => each === text);
      if (word === undefined) throw new Refusal(`expected one of ${shown}`);
      return word;
    },
  };
}

/** Any text, or what `parse` makes of it. */
export function text<Value = string>(
  help: string,
  takes: string,
  parse: (text: string) => Value,
): Option<Value | undefined> {
  return { takes, help, fallback: undefined, parse };
}

export function flag(help: string): Option<boolean> {
  return { takes: undefined, help, fallback: false, parse: () => true };
}

/** A file that is written at the end: its folder is looked for at the beginning. */
export function fileToWrite(help: string): Option<string | undefined> {
  return text(help, "FILE", (file) => {
    if (!existsSync(dirname(file))) throw new Refusal("expected a file in a folder that is there");
    return file;
  });
}

/** K/N: of everything, the K-th of every N. */
export interface Slice {
  readonly number: number;
  readonly of: number;
}

export function sliceOption(what: string): Option<Slice | undefined> {
  return text(`only the K-th of every N ${what}, as 1/4`, "K/N", (slice) => {
    const [, number = 0, of = 0] = (/^(\d+)\/(\d+)$/.exec(slice) ?? []).map(Number);
    if (number < 1 || number > of) throw new Refusal("expected K/N with K from 1 to N");
    return { number, of };
  });
}

export function seedOption(help: string): Option<number> {
  return wholeNumber(help, { to: SEED_MAX, fallback: 1 });
}

export const recordOption = fileToWrite("leaves what was done in FILE, as JSON");

/** Words in lines, each after the first under `indent`. */
function wrapped(words: string, indent: string): string {
  const lines = [""];
  for (const word of words.split(" ")) {
    const line = lines.at(-1)!;
    const longer = line === "" ? word : `${line} ${word}`;
    if (line !== "" && indent.length + longer.length > COLUMNS) lines.push(word);
    else lines[lines.length - 1] = longer;
  }
  return lines.join(`\n${indent}`);
}

export function usageOf<Of extends Options>(declared: Declaration<Of>): string {
  const { command, about, options, words } = declared;
  const rows = Object.entries(options).map(([name, { takes, help }]) => [
    takes === undefined ? `--${name}` : `--${name} ${takes}`,
    help,
  ]);
  if (words !== undefined) rows.unshift([words.takes, words.help]);
  rows.push(["--help", "this text"]);
  const width = Math.max(...rows.map(([left]) => left!.length));
  const indent = " ".repeat(width + 4);
  return [
    `usage: ${command} -- [OPTIONS]${words === undefined ? "" : ` [${words.takes}]`}`,
    "",
    wrapped(about, ""),
    "",
    ...rows.map(([left, help]) => `  ${left!.padEnd(width)}  ${wrapped(help!, indent)}`),
  ].join("\n");
}

/** The values of the options that are given; "help" when that is asked for. @throws Refusal */
export function parseArguments<Of extends Options>(
  declared: Declaration<Of>,
  args: readonly string[],
): Arguments<Of> | "help" {
  const { options, words: wanted, command } = declared;
  const types = Object.entries(options).map(([name, { takes }]) =>
    [name, { type: takes === undefined ? "boolean" as const : "string" as const }] as const
  );
  // Not strict: what it then says of a mistake differs between the runtimes.
  const { tokens } = parseArgs({
    args: [...args],
    options: { ...Object.fromEntries(types), help: { type: "boolean", short: "h" } },
    allowPositionals: true,
    strict: false,
    tokens: true,
  });
  if (tokens.some((token) => token.kind === "option" && token.name === "help")) return "help";
  const values: Record<string, unknown> = {};
  for (const [name, { fallback }] of Object.entries(options)) values[name] = fallback;
  const words: string[] = [];
  for (const token of tokens) {
    if (token.kind === "positional") words.push(token.value);
    if (token.kind !== "option") continue;
    const { name, rawName, value, inlineValue } = token;
    const option = Object.hasOwn(options, name) ? options[name] : undefined;
    if (option === undefined || rawName !== `--${name}`) {
      throw new Refusal(`there is no option ${rawName}`);
    }
    values[name] = valueOf(option, rawName, value, inlineValue === true);
  }
  const most = wanted?.most ?? 0;
  if (words.length > most) {
    const where = command.startsWith("npm") ? `; with npm, options come after "--"` : "";
    const expected = most === 0 ? "nothing but options" : `${most} of ${wanted!.takes} at most`;
    throw new Refusal(`found "${words[most]}", expected ${expected}${where}`);
  }
  return { values: values as Values<Of>, words };
}

function valueOf(
  option: Option<unknown>,
  name: string,
  value: string | undefined,
  isInline: boolean,
): unknown {
  if (option.takes === undefined) {
    if (value === undefined) return option.parse("");
    throw new Refusal(`${name}: found "${value}", expected no value`);
  }
  // What looks like the next option is one, unless it is joined by "=".
  if (value === undefined || value === "" || (value.startsWith("--") && !isInline)) {
    throw new Refusal(`${name}: found nothing, expected a value: ${name} ${option.takes}`);
  }
  try {
    return option.parse(value);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    throw new Refusal(`${name}: found "${value}", ${error.message}`);
  }
}

/** Ends with one line and status 2: nothing was done. */
export function refuse(declared: { readonly command: string }, reason: string): never {
  const name = declared.command.split(" ").at(-1)!;
  console.error(`${name}: ${reason}; ${declared.command} -- --help tells what there is`);
  process.exit(2);
}

/** What the command was given. Prints the usage or one line, and ends, when that is no run. */
export function argumentsOf<const Of extends Options>(
  declared: Declaration<Of>,
  args: readonly string[] = process.argv.slice(2),
): Arguments<Of> {
  try {
    const parsed = parseArguments(declared, args);
    if (parsed !== "help") return parsed;
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    refuse(declared, error.message);
  }
  console.log(usageOf(declared));
  process.exit(0);
}
