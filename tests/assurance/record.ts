/**
 * What one part of the assurance run did, as a file: each part's own command writes one when asked
 * with `--record FILE`, and `npm run assurance` makes the report of all of them.
 */
import { readFileSync, writeFileSync } from "node:fs";

export interface AssuranceRecord {
  /** The part's name, one word: "cuts", "swarm", "fuzz", … */
  readonly part: string;
  /** What was done, one sentence without figures, for the report. */
  readonly what: string;
  /** The command that does it again. */
  readonly command: string;
  /** Every figure by its full name with its unit: "cut points", "recoveries", "fuzz inputs". */
  readonly counts: Readonly<Record<string, number>>;
  /** Figures by kind, a table each: scenario, fault, decoder, file system. */
  readonly tables?: ReadonlyArray<{
    readonly title: string;
    readonly columns: readonly string[];
    readonly rows: ReadonlyArray<ReadonlyArray<string | number>>;
  }>;
  /** One line each that shows the failure again; empty when nothing failed. */
  readonly failures: readonly string[];
  readonly wallSeconds: number;
}

export function writeRecord(file: string, record: AssuranceRecord): void {
  writeFileSync(file, `${JSON.stringify(record, null, 2)}\n`);
}

export function readRecord(file: string): AssuranceRecord {
  return JSON.parse(readFileSync(file, "utf8")) as AssuranceRecord;
}

/** The line of a failure's message that shows it again; all of it as one line if there is none. */
export function replayLine(message: string): string {
  const lines = message.split("\n").map((line) => line.trim());
  const replay = lines.find((line) => line.startsWith("replay: "));
  return replay?.slice("replay: ".length) ?? lines.join(" ").slice(0, 500);
}
