/**
 * A mutant: a copy of the sources in a temporary folder with one mutation applied, and the hunt
 * for it with the simulator's own command.
 */
import { type ChildProcess, spawn } from "node:child_process";
import {
  cpSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { notWhileEnding, whenInterrupted } from "../../support/interrupted.ts";
import type { Hunt, Mutation } from "./mutation.ts";

const TOP = join(import.meta.dirname!, "../../..");
/** Everything that the simulator's command runs from. */
const COPIED = ["lib", "tests/simulation", "tests/support", "package.json", "tsconfig.json"];
COPIED.push("deno.json", "tests/assurance/record.ts", "tests/corruption", "tests/offline");

export interface Outcome {
  /** Where it showed; undefined when it never did. */
  readonly scenario?: string;
  /** Seeds that were run, in all hunts. */
  readonly seeds: number;
  /** Recoveries that were looked at until then, in all hunts. */
  readonly cuts: number;
  /** What the simulator said of it. */
  readonly message: string;
}

/** @throws when the text of a mutation is not in its file exactly once. */
export function mutatedText(mutation: Mutation): string {
  const source = readFileSync(join(TOP, mutation.file), "utf8");
  const found = source.split(mutation.text).length - 1;
  if (found === 1) return source.replace(mutation.text, () => mutation.becomes);
  throw new Error(
    `mutation "${mutation.name}": its text is ${found} times in ${mutation.file}, expected once; ` +
      `bring tests/simulation/mutations/mutations.ts up to date with the code`,
  );
}

/** Applies the mutation to a copy and hunts for it; the copy is removed afterwards. */
export async function huntFor(mutation: Mutation): Promise<Outcome> {
  const text = mutatedText(mutation);
  const copy = mkdtempSync(join(tmpdir(), "bcache-fuse-mutant-"));
  const handled = whenInterrupted(() => {
    for (const child of children) child.kill("SIGKILL");
    rmSync(copy, { recursive: true, force: true });
  });
  try {
    for (const name of COPIED) {
      mkdirSync(join(copy, name, ".."), { recursive: true });
      cpSync(join(TOP, name), join(copy, name), { recursive: true });
    }
    symlinkSync(join(TOP, "node_modules"), join(copy, "node_modules"));
    writeFileSync(join(copy, mutation.file), text);
    let seeds = 0;
    let cuts = 0;
    for (const hunt of mutation.hunts) {
      const found = await run(copy, hunt);
      seeds += found.seeds;
      cuts += found.cuts;
      if (found.message !== "") {
        return { scenario: hunt.scenario, seeds, cuts, message: found.message };
      }
    }
    if (mutation.damaged === undefined) return { seeds, cuts, message: "" };
    const message = await tryDamage(copy, mutation.damaged);
    return { ...(message === "" ? {} : { scenario: "table of damage" }), seeds, cuts, message };
  } finally {
    handled();
    rmSync(copy, { recursive: true, force: true });
  }
}

/** Simulators that run: they would go on without whoever started them. */
const children = new Set<ChildProcess>();
const isBun = process.versions["bun"] !== undefined;
const DENO = ["-A", "--no-check"];

/** What the simulator says of a seed it went through, and of one that failed. */
const CUTS_TOLD = /, (\d+) cuts?, (\d+) in|, (?:after )?(\d+) recover(?:y|ies)[:,]/g;

async function runIn(folder: string, args: readonly string[]) {
  const child = spawn(process.execPath, args, { cwd: folder, stdio: ["ignore", "pipe", "pipe"] });
  children.add(child);
  let out = "";
  let message = "";
  child.stdout.on("data", (chunk) => out += String(chunk));
  child.stderr.on("data", (chunk) => message += String(chunk));
  const code = await new Promise<number | null>((resolve, reject) => {
    child.once("error", reject);
    child.once("close", resolve);
  });
  children.delete(child);
  await notWhileEnding();
  return { code, out, message };
}

/** Damages one structure in all the ways there are; empty when the table of damage still holds. */
async function tryDamage(copy: string, structure: string): Promise<string> {
  const file = "./tests/corruption/corruption_test.ts";
  const name = `${structure}: ends as the table says`;
  // Deno filters groups only.
  const args = isBun ? ["test", "--timeout=60000", file, "-t", name] : ["test", ...DENO, file];
  const { code, out, message } = await runIn(copy, args);
  if (code === 0) return "";
  const all = `${out}\n${message}`;
  if (all.includes(name)) return all;
  throw new Error(`the table of damage itself failed (${code}): ${all}`);
}

/** Runs one hunt; `message` is empty when nothing was found. */
async function run(copy: string, hunt: Hunt) {
  const args = ["tests/simulation/run.ts", "--first", "--scenario", hunt.scenario];
  args.push("--count", `${hunt.seeds}`, "--every", `${hunt.every}`);
  if (hunt.fault !== undefined) args.push("--fault", hunt.fault);
  const { code, out, message } = await runIn(copy, isBun ? args : ["run", ...DENO, ...args]);
  if (code !== 0 && !message.includes("replay: ")) {
    throw new Error(`the simulator itself failed (${code}): ${message}`);
  }
  const found = `${out}\n${message}`.matchAll(CUTS_TOLD);
  let cuts = 0;
  for (const [, some = 0, nested = 0, last = 0] of found) {
    cuts += Number(some) + Number(nested) + Number(last);
  }
  const seeds = out.split("\n").filter((line) => line.includes(" seed ")).length;
  return { seeds: seeds + (code === 0 ? 0 : 1), cuts, message: code === 0 ? "" : message };
}
