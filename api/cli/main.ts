/**
 * The command line: runs one command and turns every failure into one line on standard error.
 * Exit status: 0 done, 1 failed, 2 the command line itself is wrong, 4 what was looked at is
 * damaged.
 */
import { type Command, CommanderError } from "commander";
import process from "node:process";
import { BcacheError, messageOf } from "../../lib/base/errors.ts";
import { createParser } from "./commands.ts";
import { DaemonError, reportError } from "./daemon.ts";
import { logStamp, oneLine } from "./format.ts";
import type { Program } from "./program.ts";
import { DamageError, UsageError } from "./program.ts";

/** Runs the command in `words` (without runtime and file name). Never rejects. */
export async function main(words: readonly string[], program: Program): Promise<number> {
  const parser = createParser(program);
  try {
    if (words.length === 0) throw new UsageError("no command was given");
    await parser.parseAsync([...words], { from: "user" });
    return 0;
  } catch (thrown) {
    if (thrown instanceof CommanderError && thrown.exitCode === 0) return 0; // --help, --version
    const error = await withMount(program, thrown);
    const { line, status } = describe(error, commandIn(parser, words));
    program.err(`${logStamp(program)}bcache-fuse: ${line}\n`);
    if (process.env["BCACHE_FUSE_DEBUG"] && error instanceof Error) {
      program.err(`${error.stack ?? ""}\n`);
    }
    if (program.isDaemon) reportError(program, { line, status });
    return status;
  }
}

/** The command that the words begin with, `volume create` too; empty: none that there is. */
function commandIn(parser: Command, [word, ...rest]: readonly string[]): string {
  const known = parser.commands.find((each) => each.name() === word);
  return known === undefined ? "" : `${known.name()} ${commandIn(known, rest)}`.trimEnd();
}

/** A refusal of a device that another process has tells which mount that is, if it is one. */
async function withMount(program: Program, error: unknown): Promise<unknown> {
  if (!(error instanceof BcacheError) || error.code !== "Busy") return error;
  const { namingMount } = await import("./in_use.ts");
  return await namingMount(program, error);
}

function describe(
  error: unknown,
  command: string,
): { line: string; status: number } {
  const message = oneLine(messageOf(error));
  if (error instanceof DaemonError) return { line: message, status: error.status };
  if (error instanceof CommanderError || error instanceof UsageError) {
    const isHelp = error instanceof CommanderError && error.code === "commander.help";
    const text = isHelp
      ? "say which of its commands you mean"
      : message.replace(/^error: |\.$/g, "");
    const help = command === "" ? "bcache-fuse --help" : `bcache-fuse ${command} --help`;
    return { line: `${text}; see ${help}`, status: 2 };
  }
  const isReadOnly = error instanceof BcacheError && error.code === "ReadOnly" &&
    message.endsWith("the cache set is read-only; nothing was changed");
  const advice = isReadOnly ? ": unmount it, and mount it without --read-only" : "";
  return { line: message + advice, status: error instanceof DamageError ? 4 : 1 };
}
