/**
 * docs/attributes.md, written from the tables of attributes themselves.
 *
 *   bun tests/support/attribute_docs.ts --write
 */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import type { Attribute } from "../../lib/cache/attributes/attribute.ts";
import {
  DEVICE_ATTRIBUTES,
  SET_ATTRIBUTES,
  VOLUME_ATTRIBUTES,
} from "../../lib/cache/attributes/tables.ts";

export const ATTRIBUTE_DOCS: string = join(import.meta.dirname!, "../../docs/attributes.md");

const INTRODUCTION = [
  "# Attributes",
  "",
  "Named as in the kernel's sysfs. `bcache-fuse get MOUNTPOINT` shows them all,",
  "`get MOUNTPOINT NAME` one, `set MOUNTPOINT NAME VALUE` changes one; over HTTP they are below",
  "`/v1/attributes` (the set's) and `/v1/devices/bcache0/attributes` (a device's). A value out of",
  "its range is refused, with the range, and nothing changes. What is not said to be kept holds",
  "until the set is closed; `mount --set NAME=VALUE` sets it at every start.",
  "",
  "Statistics come in four periods: `stats_total`, `stats_five_minute`, `stats_hour` and",
  "`stats_day`; the last three lose half of their value in their time.",
  "",
].join("\n");

const cell = (text: string): string => text.replaceAll("|", "\\|").replaceAll("\n", " ");

function row<Target>(attribute: Attribute<Target>): string {
  const { name, unit, range, initial, kept, help } = attribute;
  const writable = attribute.write !== undefined;
  // A number is followed by its unit, words are not.
  const between = /\d$/.test(range ?? "") ? " " : ", ";
  const takes = !writable ? "" : [range, unit].filter((part) => part).join(between);
  const kind = writable ? "rw" : "r";
  const first = initial === "" ? "(empty)" : initial ?? "";
  return `| \`${name}\` | ${kind} | ${cell(takes)} | ${cell(first)} | ${kept ?? ""} | ${
    cell(help)
  } |`;
}

/** Of the counters, the same in each period, only the first period is shown. */
const shownOnce = (name: string): boolean => !/^stats_(five_minute|hour|day)\//.test(name);

function table<Target>(attributes: readonly Attribute<Target>[]): string {
  const rows = attributes.filter(({ name }) => shownOnce(name)).map(row);
  const head =
    "| name | | takes | at start | kept in | what it is |\n| --- | --- | --- | --- | --- | --- |";
  return [head, ...rows].join("\n");
}

export function attributeDocs(): string {
  return [
    INTRODUCTION,
    "## Of the cache set and its cache device\n",
    table(SET_ATTRIBUTES),
    "\n## Of a device\n",
    table(DEVICE_ATTRIBUTES),
    "\n## Of a volume on the cache alone\n",
    table(VOLUME_ATTRIBUTES),
    "",
  ].join("\n");
}

if (import.meta.main && process.argv.includes("--write")) {
  writeFileSync(ATTRIBUTE_DOCS, attributeDocs());
}
