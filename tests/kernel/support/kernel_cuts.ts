/**
 * Power cuts under the kernel, at any moment of its run: the machine logs all that it writes to one
 * disk, which holds the cache and the backing device as partitions. Afterwards what that disk may
 * hold at many moments, with some of what no flush covered lost or torn, is given to our engine:
 * the offline check must find nothing, every sector must read as the kernel was told that it is
 * durable, or newer, and the devices must be right after all is written back.
 *
 * One disk, so that the kernel's flushes reach both: Linux makes keys clean without a flush of the
 * backing device of its own.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { CacheSet } from "../../../lib/cache/cache_set.ts";
import type { CacheMode } from "../../../lib/cache/ports.ts";
import { checkCache } from "../../../lib/offline/check.ts";
import { findingText } from "../../../lib/offline/findings.ts";
import { formatBacking, formatCache } from "../../../lib/ondisk/format.ts";
import { DiskImage } from "../../simulation/disk_image.ts";
import { CUT_POLICIES, imageAfterCut } from "../../simulation/power_cut.ts";
import { SimClock } from "../../simulation/sim_clock.ts";
import { SimDisk } from "../../simulation/sim_disk.ts";
import { SimRandom } from "../../simulation/sim_random.ts";
import { createFile } from "./files.ts";
import { boot } from "./machine.ts";
import { readAll } from "./ours.ts";
import { dataDisk, Model, type Piece, pieces, SECTOR, VOLUME_BYTES } from "./pieces.ts";
import { type LoggedWrite, pendingAt, readWriteLog } from "./write_log.ts";

const MODES: readonly CacheMode[] = ["writeback", "writethrough", "writeback", "writearound"];
/** Each step writes some pieces, makes them durable, and then writes its number to the disk. */
const STEPS = 12;
const PIECES_PER_STEP = 6;
const HEAD_SECTORS = 16;
const BUCKET_SECTORS = 64;
const BUCKETS = 1200;

/** Where the partitions are: the cache, the backing device, and one for the numbers of steps. */
const CACHE = { first: 2048, sectors: BUCKETS * BUCKET_SECTORS };
const BACKING = { first: 2048 + CACHE.sectors, sectors: HEAD_SECTORS + VOLUME_BYTES / SECTOR };
const STEP = { first: BACKING.first + BACKING.sectors + 8, sectors: 2048 };
const DISK_SECTORS = STEP.first + STEP.sectors;
const STEP_BYTES = 4096;
const PARTITIONS = [CACHE, BACKING, STEP];

export interface KernelCuts {
  /** Moments at which the power was cut. */
  readonly cuts: number;
  /** What the kernel wrote and flushed. */
  readonly operations: number;
  readonly mode: CacheMode;
}

/** The disk as it is made here: a partition table, and both superblocks. */
function formattedDisk(mode: CacheMode, blockSectors: number, random: SimRandom): DiskImage {
  const disk = new DiskImage(DISK_SECTORS, (_sector, into) => into.fill(0));
  const table = new Uint8Array(SECTOR);
  const view = new DataView(table.buffer);
  PARTITIONS.forEach(({ first, sectors }, at) => {
    const entry = 446 + 16 * at;
    view.setUint8(entry + 4, 0x83);
    view.setUint32(entry + 8, first, true);
    view.setUint32(entry + 12, sectors, true);
  });
  view.setUint16(510, 0xaa55, true);
  disk.write(0, table);
  const uuid = () => Uint8Array.from({ length: 16 }, () => random.below(256));
  const common = { setUuid: uuid(), logicalBlockSectors: 1, blockSectors };
  const shape = { ...common, bucketSectors: BUCKET_SECTORS };
  disk.write(
    CACHE.first + 8,
    formatCache({ ...shape, name: "cache", sizeSectors: CACHE.sectors, uuid: uuid() }),
  );
  disk.write(
    BACKING.first + 8,
    formatBacking({
      ...shape,
      name: "backing",
      sizeSectors: BACKING.sectors,
      uuid: uuid(),
      cacheMode: mode,
    }),
  );
  return disk;
}

function wholeImage(disk: DiskImage): Uint8Array {
  const bytes = new Uint8Array(disk.sizeSectors * SECTOR);
  disk.read(0, bytes);
  return bytes;
}

/** What the guest does; each step ends with a write to its own block of the last partition. */
function guestScript(steps: ReadonlyArray<readonly Piece[]>): string {
  const lines = ["DATA=$(disk data)", "whole=$(disk whole)"];
  lines.push("put /sys/fs/bcache/register /dev/${whole}1");
  lines.push("put /sys/fs/bcache/register /dev/${whole}2");
  lines.push("settings=/sys/class/block/${whole}2/bcache");
  lines.push("until_is 20 reads $settings/running 1");
  lines.push("volume=$(readlink $settings/dev) volume=${volume##*/}");
  lines.push("until_is 20 [ -b /dev/$volume ]");
  lines.push("put $settings/writeback_delay 0", "put $settings/writeback_percent 0");
  steps.forEach((own, number) => {
    for (const { unitBytes, from, to, count } of own) {
      lines.push(`copy $volume ${unitBytes} ${from} ${to} ${count}`);
    }
    lines.push("durable $volume");
    if (number % 3 === 1) {
      lines.push("put $(readlink -f /sys/class/block/${whole}1/bcache/set)/internal/trigger_gc 1");
    }
    lines.push(`copy \${whole}3 ${STEP_BYTES} ${number} ${number} 1`);
  });
  lines.push("marker cut");
  return lines.join("\n");
}

/** One run of the kernel, and `cuts` cuts in it. @throws at the first thing that is wrong. */
export async function cutTheKernel(
  options: { readonly folder: string; readonly seed: number; readonly cuts: number },
): Promise<KernelCuts> {
  const { folder, seed } = options;
  const random = new SimRandom(seed);
  const mode = MODES[seed % MODES.length]!;
  const blockSectors = random.pick([1, 8]);
  const data = dataDisk();
  writeFileSync(join(folder, "data"), data);
  const original = formattedDisk(mode, blockSectors, random);
  writeFileSync(join(folder, "whole"), wholeImage(original));
  createFile(join(folder, "log"), 0);
  const everywhere = { fromBytes: 0, toBytes: VOLUME_BYTES };
  const steps = Array.from(
    { length: STEPS },
    () => pieces(random, PIECES_PER_STEP, random.pick([blockSectors * SECTOR, 4096]), everywhere),
  );
  await boot({
    disks: [
      { serial: "data", path: join(folder, "data") },
      { serial: "whole", path: join(folder, "whole"), logPath: join(folder, "log") },
    ],
    script: guestScript(steps),
    cutAt: "cut",
  });
  const writes = readWriteLog(new Uint8Array(readFileSync(join(folder, "log"))));
  const judge = new Judge(original, writes, steps, data);
  for (let cut = 0; cut < options.cuts; cut++) {
    const at = random.between(judge.begin, writes.length);
    const policy = random.pick(CUT_POLICIES);
    try {
      await judge.look(at, policy, random.fork(cut));
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      throw new Error(
        `${mode}, blocks of ${blockSectors} sectors, power cut under the kernel after ${at} of ` +
          `${writes.length} operations, unflushed kept: ${policy}: ${reason}`,
        { cause: error },
      );
    }
  }
  return { cuts: options.cuts, operations: writes.length, mode };
}

class Judge {
  #original: DiskImage;
  #writes: readonly LoggedWrite[];
  #steps: ReadonlyArray<readonly Piece[]>;
  #data: Uint8Array;
  /** By step: the operation that wrote its number. */
  #ends: number[] = [];

  constructor(
    original: DiskImage,
    writes: readonly LoggedWrite[],
    steps: ReadonlyArray<readonly Piece[]>,
    data: Uint8Array,
  ) {
    this.#original = original;
    this.#writes = writes;
    this.#steps = steps;
    this.#data = data;
    for (const { number, atSector, bytes } of writes) {
      if (bytes.length === 0 || atSector < STEP.first) continue;
      this.#ends[(atSector - STEP.first) / (STEP_BYTES / SECTOR)] = number;
    }
    const seen = this.#ends.filter((end) => end !== undefined).length;
    if (seen !== steps.length) throw new Error(`the log shows ${seen} of ${steps.length} steps`);
  }

  /**
   * The first step is durable, so the device is a member for good: Linux attaches it, and even
   * calls it dirty, without waiting for the journal entry that names the UUID table.
   */
  get begin(): number {
    return this.#ends[0]!;
  }

  /** What the volume may hold when the power is cut before operation `at`. */
  #modelAt(at: number): Model {
    const model = new Model();
    const done = this.#ends.filter((end) => end < at).length;
    for (const piece of this.#steps.slice(0, done).flat()) model.write(piece, this.#data);
    for (const piece of this.#steps[done] ?? []) model.writeUncertainly(piece, this.#data);
    return model;
  }

  async look(at: number, policy: (typeof CUT_POLICIES)[number], random: SimRandom): Promise<void> {
    const stable = this.#original.copy();
    const pending = pendingAt(this.#writes, at, stable);
    const whole = imageAfterCut({ stable, pending }, policy, random.fork(1));
    const clock = new SimClock({ permute: random.fork(2) });
    const part = (name: string, { first, sectors }: typeof CACHE): SimDisk => {
      const image = new DiskImage(sectors, (sector, into) => whole.read(first + sector, into));
      const common = { name, sizeSectors: sectors, clock, image, sync: true };
      return new SimDisk({ ...common, random: random.fork(3) });
    };
    const cache = part("cache", CACHE);
    const backing = part("backing", BACKING);
    await clock.run(refuseFindings(cache, backing));
    const set = await clock.run(CacheSet.open({
      cache,
      backings: [{ path: "backing", device: backing }],
      clock,
      random: random.fork(4),
      log: () => undefined,
    })) as CacheSet;
    const model = this.#modelAt(at);
    const found = await clock.run(readAll(set, 0)) as Uint8Array;
    refuse(model.wrongSectors(found), "read by our engine");
    await clock.run(set.flushDirty(undefined));
    await clock.run(set.volumes[0]!.flush());
    const alone = backing.peek(HEAD_SECTORS, VOLUME_BYTES / SECTOR);
    refuse(model.wrongSectors(alone), "the drained backing device alone");
    await clock.run(set.close());
  }
}

/**
 * Linux says dirty without waiting until that is on the backing device, and clean while the dirty
 * keys are still in its journal: the check is right to warn whoever looks at that device alone.
 */
const LINUX_LEAVES = "its superblock says clean, but";

async function refuseFindings(cache: SimDisk, backing: SimDisk): Promise<void> {
  const report = await checkCache({ cache, backings: [backing] });
  const errors = report.findings.filter(({ severity }) => severity === "error").map(findingText)
    .filter((text) => !text.includes(LINUX_LEAVES));
  if (errors.length > 0) {
    throw new Error(`the offline check says: ${errors.slice(0, 3).join("; ")}`);
  }
}

function refuse(wrong: readonly number[], where: string): void {
  if (wrong.length === 0) return;
  throw new Error(`${where}: ${wrong.length} wrong sectors (${wrong.slice(0, 8).join(" ")})`);
}
