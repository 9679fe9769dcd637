/** The two servers that are compared, each showing one file through FUSE from the same disk. */
import { assert } from "@std/assert";
import { spawn } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { isMounted, run, type Served, signalTo, type Workshop } from "../e2e/support/workshop.ts";

export interface Contender {
  readonly name: string;
  readonly file: string;
  /** Its resident set now and at its peak, in MiB. */
  memory(): { residentMib: number; peakMib: number };
}

function memoryOf(processId: number): { residentMib: number; peakMib: number } {
  const status = readFileSync(`/proc/${processId}/status`, "utf8");
  const field = (name: string) => Number(new RegExp(`${name}:\\s+(\\d+) kB`).exec(status)![1]);
  return { residentMib: field("VmRSS") / 1024, peakMib: field("VmHWM") / 1024 };
}

/** Ours, in writeback mode, with room in the cache for everything, writing nothing back. */
export async function startOurs(
  place: Workshop,
  dataMib: number,
): Promise<{ contender: Contender; served: Served }> {
  const { cache, backing } = await place.format({
    // So large that, with writeback held, all the runs' dirty data stays below cutoff_writeback:
    // above it writes go through to the backing device, which is not what is measured.
    cacheMib: dataMib * 10 + 64,
    backingMib: dataMib + 1,
    // The default bucket; small devices need smaller ones to have enough of them.
    ...(dataMib >= 512 ? { bucket: "512k" } : {}),
  });
  const set = ["sequential_cutoff=0", "writeback_running=0"];
  const flags = ["--cache-mode", "writeback", ...set.flatMap((each) => ["--set", each])];
  const served = await place.mount({ cache, backing, flags });
  const contender = {
    name: "bcache-fuse",
    file: served.file,
    memory: () => memoryOf(served.process.pid!),
  };
  return { contender, served };
}

/** qemu-storage-daemon's FUSE export of a plain file. */
export async function startQemu(place: Workshop, dataMib: number): Promise<Contender> {
  const image = place.path("plain.img");
  const file = place.path("qemu-export");
  await run("truncate", "-s", `${dataMib}M`, image);
  writeFileSync(file, "");
  const child = spawn("qemu-storage-daemon", [
    "--blockdev",
    `driver=file,node-name=plain,filename=${image}`,
    "--export",
    `type=fuse,id=export,node-name=plain,mountpoint=${file},writable=on`,
  ], { stdio: ["ignore", "inherit", "inherit"] });
  place.onClose(async () => {
    signalTo(child, "SIGTERM");
    while (child.exitCode === null && child.signalCode === null) await sleep(20);
  });
  for (let tries = 0; !isMounted(file); tries++) {
    assert(tries < 500 && child.exitCode === null, "qemu-storage-daemon shows its export");
    await sleep(20);
  }
  return { name: "qemu-storage-daemon", file, memory: () => memoryOf(child.pid!) };
}
