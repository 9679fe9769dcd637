/**
 * docs/assurance.md, made of the records of all parts: a function of these and of what is known of
 * the machine, so that it says the same whenever it is made of the same.
 */
import type { AssuranceRecord } from "./record.ts";
import { counted } from "../support/lines.ts";

/** What one job of the run left. */
export interface JobResult {
  readonly part: string;
  readonly runtime: string;
  readonly args: readonly string[];
  /** Of the tests that ran. */
  readonly commit: string;
  readonly record: AssuranceRecord;
}

/** What is said of the run as a whole. */
export interface RunFacts {
  readonly version: string;
  readonly commit: string;
  readonly runtimes: readonly string[];
  readonly cores: number;
  readonly memoryGib: number;
  /** 1: all that a release asks for. */
  readonly scale: number;
  readonly wallSeconds: number;
}

/** What a release must reach; the names are those of the records' counts. */
export const GOALS: ReadonlyArray<readonly [string, number]> = [
  ["cut points", 200_000],
  ["swarm seeds", 20_000],
  ["fuzz inputs", 1_000_000],
  ["kill -9 cycles", 500],
  ["kernel round trips", 100],
  ["mutations caught", 12],
];

type Table = NonNullable<AssuranceRecord["tables"]>[number];
type Row = Table["rows"][number];

/** Figures that jobs do not add to: of these the greatest counts. */
const GREATEST = /at most|per second|^decoders$/;

function together(name: string, one: number, other: number): number {
  return GREATEST.test(name) ? Math.max(one, other) : one + other;
}

/** Figures of the same name added up. */
export function sumOfCounts(records: readonly AssuranceRecord[]): Map<string, number> {
  const sums = new Map<string, number>();
  for (const { counts } of records) {
    for (const [name, count] of Object.entries(counts)) {
      sums.set(name, together(name, sums.get(name) ?? 0, count));
    }
  }
  return sums;
}

/**
 * Tables of the same title as one. Rows that begin with the same word are one row if nothing but
 * numbers tells them apart: the numbers are added up.
 */
export function joinedTables(records: readonly AssuranceRecord[]): Table[] {
  const joined = new Map<string, { table: Table; rows: Map<string, Row> }>();
  for (const table of records.flatMap(({ tables }) => tables ?? [])) {
    const title = `${table.title}\n${table.columns.join("\n")}`;
    const { rows } = joined.get(title) ?? { rows: new Map<string, Row>() };
    for (const row of table.rows) {
      const words = row.filter((cell) => typeof cell === "string").join("\n");
      const old = rows.get(words);
      rows.set(words, old === undefined ? row : addedRow(table.columns, old, row));
    }
    joined.set(title, { table, rows });
  }
  return [...joined.values()].map(({ table, rows }) => ({ ...table, rows: [...rows.values()] }));
}

function addedRow(columns: readonly string[], one: Row, other: Row): Row {
  return one.map((cell, at) => {
    const more = other[at];
    if (typeof cell !== "number" || typeof more !== "number") return cell;
    return together(columns[at] ?? "", cell, more);
  });
}

/** 1234567.8 as 1,234,567.8. */
function figure(value: number | string): string {
  if (typeof value === "string") return value.replaceAll("|", "\\|").replaceAll("\n", " ");
  const [whole, rest] = `${Math.round(value * 10) / 10}`.split(".");
  const grouped = whole!.replace(/\B(?=(\d{3})+$)/g, ",");
  return rest === undefined ? grouped : `${grouped}.${rest}`;
}

function duration(seconds: number): string {
  const minutes = Math.round(seconds / 60);
  if (minutes < 2) return `${Math.round(seconds)} s`;
  return minutes < 120 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function tableLines(columns: readonly string[], rows: readonly Row[]): string[] {
  const line = (cells: Row) => `| ${cells.map(figure).join(" | ")} |`;
  return [line(columns), line(columns.map(() => "---")), ...rows.map(line)];
}

/** The seeds of a job, and its command without them. */
function commandOf({ args, runtime, record }: JobResult) {
  const kept: string[] = [];
  let seed: number | undefined;
  let count = 1;
  for (let at = 0; at < args.length; at++) {
    if (args[at] === "--seed") seed = Number(args[++at]);
    else if (args[at] === "--count" || args[at] === "--cycles") count = Number(args[++at]);
    else kept.push(args[at]!);
  }
  const command = `${runtime === "deno" ? "npx deno run -A" : "npx bun"} ${kept.join(" ")}`;
  return { command, seed, last: (seed ?? 0) + count - 1, seconds: record.wallSeconds };
}

function commandLines(results: readonly JobResult[]): string[] {
  const rows = new Map<string, { from: number | undefined; to: number; seconds: number }>();
  for (const { command, seed, last, seconds } of results.map(commandOf)) {
    const row = rows.get(command);
    rows.set(command, {
      from: row?.from === undefined ? seed : Math.min(row.from, seed ?? row.from),
      to: Math.max(row?.to ?? last, last),
      seconds: (row?.seconds ?? 0) + seconds,
    });
  }
  const cells = [...rows].map(([command, { from, to, seconds }]) => [
    `\`${command}\``,
    from === undefined ? "" : from === to ? `${from}` : `${from} to ${to}`,
    Math.round(seconds),
  ]);
  return tableLines(["command", "seeds", "seconds"], cells);
}

/** What a release must reach and these records do not, as "swarm seeds: 40 of 20,000". */
export function goalsNotReached(records: readonly AssuranceRecord[]): string[] {
  const counts = sumOfCounts(records);
  return GOALS.map(([name, goal]) => ({ name, goal, done: counts.get(name) ?? 0 }))
    .filter(({ goal, done }) => done < goal)
    .map(({ name, goal, done }) => `${name}: ${figure(done)} of ${figure(goal)}`);
}

function goalLines(counts: ReadonlyMap<string, number>): string[] {
  const rows = GOALS.map(([name, goal]) => {
    const done = counts.get(name) ?? 0;
    return [name, goal, done, done >= goal ? "reached" : done === 0 ? "not run" : "not reached"];
  });
  return tableLines(["what", "goal", "done", ""], rows);
}

function partLines(title: string, results: readonly JobResult[]): string[] {
  const records = results.map(({ record }) => record);
  const lines = [`## ${title}`, ""];
  const sentences = new Set(records.map(({ what }) => what).filter((what) => what !== ""));
  if (sentences.size > 0) lines.push([...sentences].join(" "), "");
  const counts = [...sumOfCounts(records)];
  if (counts.length > 0) lines.push(...tableLines(["figure", "count"], counts), "");
  for (const { title: name, columns, rows } of joinedTables(records)) {
    lines.push(`### ${name}`, "", ...tableLines(columns, rows), "");
  }
  return lines;
}

/** The whole document. `titles` has the parts by name, in the order in which they appear. */
export function assuranceReport(
  facts: RunFacts,
  titles: ReadonlyMap<string, string>,
  results: readonly JobResult[],
): string {
  const records = results.map(({ record }) => record);
  const failures = records.flatMap((record) => record.failures);
  const inParts = records.reduce((sum, { wallSeconds }) => sum + wallSeconds, 0);
  const about: Row[] = [
    ["version", `${facts.version}, commit ${facts.commit}`],
    ["runtimes", facts.runtimes.join(", ")],
    ["machine", `${facts.cores} processors, ${facts.memoryGib} GiB of memory`],
    ["wall time", `${duration(facts.wallSeconds)}; the parts by themselves ${duration(inParts)}`],
    ["failures open", failures.length],
  ];
  const commits = [...Map.groupBy(results, ({ commit }) => commit)];
  if (commits.some(([commit]) => commit !== facts.commit)) {
    const jobs = commits.map(([commit, { length }]) => `${counted(length, "job")} of ${commit}`);
    about.push(["tests", `${jobs.join(", ")}; api, fuse and lib are the same`]);
  }
  if (facts.scale !== 1) about.push(["scale", `${facts.scale}: a try-out, not what a release is`]);
  const lines = [
    "# Assurance",
    "",
    "What was done to this version to find data lost or made up, and what came of it. Written by " +
    "`npm run assurance` from the records of its parts; what each part does is in the files that " +
    "its command names.",
    "",
    ...tableLines(["", ""], about),
    "",
    "## Goals",
    "",
    ...goalLines(sumOfCounts(records)),
    "",
    "## Failures",
    "",
    ...(failures.length === 0 ? ["None."] : failures.map((line) => `- \`${line}\``)),
    "",
  ];
  for (const [part, title] of titles) {
    const own = results.filter((result) => result.part === part);
    if (own.length > 0) lines.push(...partLines(title, own));
  }
  lines.push("## Again", "", "Each of these runs it again, with `--seed` and `--count`.", "");
  lines.push(...commandLines(results), "");
  return lines.join("\n");
}
