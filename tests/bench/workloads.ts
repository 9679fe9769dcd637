/** What is measured, by fio, and what is asked of us beside qemu-storage-daemon. */
import { assert } from "@std/assert";
import { attempt, run } from "../e2e/support/workshop.ts";

export interface Workload {
  readonly name: string;
  /** fio's options besides the file, the size and the time. */
  readonly options: readonly string[];
  readonly direction: "read" | "write";
  readonly unit: "IOPS" | "MiB/s";
  /** The least ratio of ours to theirs that we want; absent: measured to be known. */
  readonly wantedRatio?: number;
  /** How the data came into the cache: in order, or as 4 KiB extents in random order. */
  readonly filled: "in order" | "scattered";
}

const FILL_LIMIT_MS = 300_000;
const ASYNC = ["--ioengine=libaio", "--direct=1"];

const SEQUENTIAL_READ = ["--rw=read", "--bs=1m", "--iodepth=4", ...ASYNC];

export const WORKLOADS: readonly Workload[] = [
  {
    name: "1 MiB sequential read",
    options: SEQUENTIAL_READ,
    direction: "read",
    unit: "MiB/s",
    wantedRatio: 1.5,
    filled: "in order",
  },
  {
    name: "4 KiB random read, depth 16",
    options: ["--rw=randread", "--bs=4k", "--iodepth=16", ...ASYNC],
    direction: "read",
    unit: "IOPS",
    wantedRatio: 2,
    filled: "scattered",
  },
  {
    name: "4 KiB random read, depth 1",
    options: ["--rw=randread", "--bs=4k", "--ioengine=psync", "--direct=1"],
    direction: "read",
    unit: "IOPS",
    wantedRatio: 0.8,
    filled: "scattered",
  },
  {
    name: "1 MiB sequential read of scattered 4 KiB extents",
    options: SEQUENTIAL_READ,
    direction: "read",
    unit: "MiB/s",
    filled: "scattered",
  },
  {
    name: "4 KiB random write, depth 16",
    options: ["--rw=randwrite", "--bs=4k", "--iodepth=16", ...ASYNC],
    direction: "write",
    unit: "IOPS",
    wantedRatio: 1,
    filled: "scattered",
  },
];

export interface Sizes {
  readonly dataMib: number;
  readonly seconds: number;
  readonly repeats: number;
}

/** One timed run of a workload; the result is in the workload's unit. */
export async function measure(workload: Workload, file: string, sizes: Sizes): Promise<number> {
  const output = await run(
    "fio",
    "--name=bench",
    `--filename=${file}`,
    `--size=${sizes.dataMib}m`,
    "--time_based",
    `--runtime=${sizes.seconds}`,
    `--ramp_time=${sizes.seconds >= 2 ? 1 : 0}`,
    "--randrepeat=0",
    "--norandommap",
    "--output-format=json",
    ...workload.options,
  );
  // fio may print a note before its JSON.
  const job = JSON.parse(output.slice(output.indexOf("{"))).jobs[0][workload.direction];
  return workload.unit === "IOPS" ? job.iops : job.bw_bytes / (1 << 20);
}

/** Writes every 4 KiB block once, in random order: the most keys that the data can make. */
export async function fill(
  file: string,
  dataMib: number,
  how: Workload["filled"],
): Promise<void> {
  const pattern = how === "scattered"
    ? ["--rw=randwrite", "--bs=4k", "--iodepth=16", "--randrepeat=1"]
    : ["--rw=write", "--bs=1m", "--iodepth=1"];
  const { status, stderr } = await attempt([
    "fio",
    "--name=fill",
    `--filename=${file}`,
    `--size=${dataMib}m`,
    ...pattern,
    "--end_fsync=1",
    ...ASYNC,
  ], { limitMs: FILL_LIMIT_MS });
  assert(status === 0, `filling ${file} ended with ${status}: ${stderr}`);
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}
