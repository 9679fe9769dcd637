/** What the tests of real processes share: our commands, how servers end, small disks. */
import { assert } from "@std/assert";
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { JournalOfWrites } from "../../e2e/support/journal_of_writes.ts";
import {
  attempt,
  type Outcome,
  run,
  type Served,
  type Workshop,
} from "../../e2e/support/workshop.ts";
import { generator, programUnder, THIS_RUNTIME } from "./runtimes.ts";

const END_LIMIT_MS = 30_000;
const WRITE_LIMIT_MS = 60_000;
const MIB = 1 << 20;

/** Our program under the runtime of the test; it may fail. */
export function client(...words: string[]): Promise<Outcome> {
  return attempt([...programUnder(THIS_RUNTIME), ...words]);
}

/** The exit status of a server, once it has ended; null when a signal ended it. */
export async function exitOf(served: Served): Promise<number | null> {
  const { process: server } = served;
  const deadlineMs = Date.now() + END_LIMIT_MS;
  while (server.exitCode === null && server.signalCode === null) {
    assert(Date.now() < deadlineMs, `the server ends:\n${served.output()}`);
    await sleep(10);
  }
  return server.exitCode;
}

/** The lines that a server wrote, without those that only inform. */
export function complaintsOf(served: Served): string[] {
  return served.output().split("\n").filter((line) => /^bcache-fuse: (?!info:)/.test(line));
}

/** `status --json` of a mount. */
export async function statusOf(served: Served) {
  const { status, stdout, stderr } = await client("status", served.mountpoint, "--json");
  assert(status === 0, stderr);
  return JSON.parse(stdout).set as {
    failed?: string;
    warnings?: string[];
    lastError?: string;
    devices: Array<{ lastError?: string; ioErrors: number; dirtyBytes: number }>;
  };
}

/** Blocks of 64 KiB over 32 MiB, so that much is written with few flushes. */
export function largeBlocks(): JournalOfWrites {
  return new JournalOfWrites(512, 65_536);
}

/** Writes and flushes until something fails. The batches that were acknowledged. */
export function writeUntilFailure(truth: JournalOfWrites, served: Served, seed: number): number {
  return truth.writeUntilDeath(served.file, generator(seed), WRITE_LIMIT_MS);
}

/** A few acknowledged batches. */
export function writeSome(truth: JournalOfWrites, served: Served, batches: number): void {
  let left = batches;
  const random = generator(batches);
  truth.writeBatches(served.file, random, () => left-- > 0);
}

export interface SmallDisk {
  readonly folder: string;
  /** Takes away what filled the disk. */
  makeSpace(): void;
}

/** A file system of its own, of which only `freeMib` are free. */
export async function smallDisk(
  place: Workshop,
  sizes: { mib: number; freeMib: number },
): Promise<SmallDisk> {
  const image = place.path("disk.img");
  await run("truncate", "-s", `${sizes.mib}M`, image);
  await run("mkfs.ext4", "-q", "-O", "^has_journal", "-m", "0", image);
  const folder = await place.mountFileSystem(image, "disk", "-o", "loop");
  const ballast = join(folder, "ballast");
  const free = (await run("df", "--output=avail", "-B1", folder)).trim().split("\n").pop();
  await run("fallocate", "-l", String(Number(free) - sizes.freeMib * MIB), ballast);
  return { folder, makeSpace: () => rmSync(ballast) };
}

/** The number of a mount's connection to the kernel, where it can be aborted. */
export async function abortConnection(place: Workshop, served: Served): Promise<void> {
  const number = (await run("stat", "-c", "%d", served.mountpoint)).trim();
  const control = "/sys/fs/fuse/connections";
  if (!readFileSync("/proc/self/mounts", "utf8").includes(` ${control} `)) {
    await run("mount", "-t", "fusectl", "none", control);
    place.onClose(async () => void await attempt(["umount", control]));
  }
  writeFileSync(`${control}/${number}/abort`, "1");
}
