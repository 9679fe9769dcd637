/**
 * Carries cache sets from side to side, all cases of a table in step:
 *
 *   1. ours    makes the devices and writes (where the kernel is the maker: only formats)
 *   2. kernel  reads every byte, writes, collects garbage; is stopped or loses power
 *   3. ours    reads every byte, writes, ends as the case says
 *   4. kernel  reads every byte, writes, collects, is stopped
 *   5. ours    reads every byte, writes everything back; then the backing devices alone are read
 *
 * Where a run ended in a crash, what it had not made durable reads either way, on both sides, until
 * it is written again; everything else reads as it was written.
 */
import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { makeBacking, makeCache, prepareSidecar, writePrepared } from "../../../lib/cache/make.ts";
import { sidecarPath } from "../../../lib/cache/members/open_backing.ts";
import { checkCache } from "../../../lib/offline/check.ts";
import { findingText } from "../../../lib/offline/findings.ts";
import { openFileDevice } from "../../../lib/device/file.ts";
import { SimRandom } from "../../simulation/sim_random.ts";
import type { Case } from "./cases.ts";
import type { CacheSet } from "../../../lib/cache/cache_set.ts";
import { createFile } from "./files.ts";
import { boot } from "./machine.ts";
import type { GuestDisk } from "./machine.ts";
import { writeAndLosePower } from "./lost_power.ts";
import { readAll, withSet, writeAndBeKilled, writePieces } from "./ours.ts";
import { dataDisk, Model, type Piece, pieces, SECTOR, VOLUME_BYTES } from "./pieces.ts";

/** The kernel crawls when its journal (a 128th of the buckets) has only some thirty blocks. */
const JOURNAL_BLOCKS = 64;
const BUCKETS_MIN = 600;
const HEAD_BYTES = 16 * SECTOR;
const OUR_PIECES = 1500;
const KERNEL_PIECES = 40;
/** The end of the volume: here a run that crashes leaves things open. */
const OPEN_FROM = VOLUME_BYTES - (1 << 20);
const COVER_BYTES = 256 << 10;
/** Mebibytes of the witness disk for what is open before the kernel writes; as many for after. */
const SLOTS = 32;

/** What a run is to write to one volume. */
interface Work {
  readonly certain: readonly Piece[];
  readonly uncertain: readonly Piece[];
}

class Chain {
  readonly case: Case;
  /** How the kernel's next run ends. */
  kernelEnd: Case["kernelEnd"];
  /** One for each backing device; last the volume on the cache alone, if there is one. */
  readonly models: Model[] = [];
  /** The models as the kernel's run finds them. */
  before: Model[] = [];
  readonly cachePath: string;
  #kernelRan = false;
  #folder: string;
  #random: SimRandom;
  #data: Uint8Array;
  #dataPath: string;

  constructor(one: Case, folder: string, seed: number, data: Uint8Array, dataPath: string) {
    this.case = one;
    this.kernelEnd = one.kernelEnd;
    this.#folder = folder;
    this.#random = new SimRandom(seed);
    this.#data = data;
    this.#dataPath = dataPath;
    this.cachePath = join(folder, `${one.id}-cache`);
    const volumes = one.backings + (one.flash ? 1 : 0);
    for (let index = 0; index < volumes; index++) this.models.push(new Model());
  }

  backingPath(index: number): string {
    return join(this.#folder, `${this.case.id}-backing${index}`);
  }

  get paths(): { cache: string; backings: string[] } {
    const backings = Array.from({ length: this.case.backings }, (_, at) => this.backingPath(at));
    return { cache: this.cachePath, backings };
  }

  /** The devices, empty, as the case's maker formats them. */
  async make(): Promise<void> {
    const { bucketKib, blockBytes, mode, replacement, sidecar, maker } = this.case;
    const journalBuckets = JOURNAL_BLOCKS * blockBytes / (bucketKib << 10);
    const buckets = Math.max(BUCKETS_MIN, journalBuckets * 128 + 100);
    createFile(this.cachePath, buckets * bucketKib << 10);
    const head = sidecar ? 0 : HEAD_BYTES;
    for (const path of this.paths.backings) createFile(path, head + VOLUME_BYTES);
    if (maker === "kernel") {
      const args = ["-b", `${bucketKib}k`, "-w", `${blockBytes}`];
      args.push(`--cache-replacement-policy=${replacement}`);
      args.push("-C", this.cachePath);
      for (const path of this.paths.backings) args.push("-B", path);
      execFileSync("make-bcache", args, { stdio: "ignore" });
      return;
    }
    const uuid = () => Uint8Array.from({ length: 16 }, () => this.#random.below(256));
    const geometry = { blockSectors: blockBytes / SECTOR, bucketSectors: bucketKib * 2 };
    const common = { setUuid: uuid(), ...geometry };
    const cache = await openFileDevice(this.cachePath);
    await makeCache(cache, { ...common, uuid: uuid(), replacement });
    await cache.close();
    for (const path of this.paths.backings) {
      const options = { ...common, uuid: uuid(), cacheMode: mode };
      const backing = await openFileDevice(path);
      if (sidecar) {
        createFile(sidecarPath(path), HEAD_BYTES);
        const front = await openFileDevice(sidecarPath(path));
        await writePrepared([await prepareSidecar(front, backing, options)]);
        await front.close();
      } else await makeBacking(backing, options);
      await backing.close();
    }
    if (!this.case.flash) return;
    await withSet(this.paths, { readOnly: false }, async (set) => {
      await set.createVolume({ sizeBytes: VOLUME_BYTES });
    });
  }

  /** The next work of a run, noted in the models. What was left open is covered first. */
  plan(count: number, crashes: boolean): Work[] {
    const smallest = this.case.blockBytes;
    const random = this.#random;
    return this.models.map((model) => {
      const cover: Piece[] = [];
      for (let at = OPEN_FROM; at < VOLUME_BYTES; at += COVER_BYTES) {
        const from = random.below(16);
        cover.push({ unitBytes: COVER_BYTES, from, to: at / COVER_BYTES, count: 1 });
      }
      const all = { fromBytes: 0, toBytes: OPEN_FROM };
      const open = { fromBytes: OPEN_FROM, toBytes: VOLUME_BYTES };
      const unit = random.chance(0.3) ? smallest : 4096;
      const certain = [...cover, ...pieces(random, count, unit, all)];
      const uncertain = crashes ? pieces(random, count / 4, unit, open) : [];
      for (const piece of certain) model.write(piece, this.#data);
      for (const piece of uncertain) model.writeUncertainly(piece, this.#data);
      return { certain, uncertain };
    });
  }

  /** One run of ours: reads everything, then works. */
  async runOurs(verify: boolean): Promise<void> {
    const { ourEnd, moving } = this.case;
    if (verify) await this.check(false);
    const work = this.plan(OUR_PIECES, ourEnd !== "close");
    if (ourEnd === "close") {
      await withSet(this.paths, { readOnly: false }, async (set) => {
        await set.setAttribute(undefined, "copy_gc_enabled", moving ? "1" : "0");
        for (const [index, { certain }] of work.entries()) {
          await writePieces(set, index, certain, this.#data);
          await set.setAttribute(undefined, "trigger_gc", "1");
        }
      });
      return;
    }
    const orders = {
      paths: this.paths,
      dataPath: this.#dataPath,
      certain: work.map(({ certain }) => certain),
      uncertain: work.map(({ uncertain }) => uncertain),
    };
    if (ourEnd === "cut") await writeAndLosePower(orders, this.#random);
    else await writeAndBeKilled(orders, this.#random.between(0, 60));
    await this.check(true);
  }

  /** The offline check finds nothing, whoever wrote the devices last and however that ended. */
  async checkOffline(): Promise<void> {
    const cache = await openFileDevice(this.cachePath, { readOnly: true });
    const report = await checkCache({ cache });
    await cache.close();
    if (report.clean) return;
    const errors = report.findings.filter(({ severity }) => severity === "error");
    const some = errors.slice(0, 5).map(findingText).join("; ");
    throw new Error(`the offline check says: ${some}; ${describe(this.case)}`);
  }

  /** Reads every byte through our engine. */
  async check(readOnly: boolean): Promise<void> {
    await withSet(this.paths, { readOnly }, (set) => this.#checkAll(set));
  }

  /** Writes everything back; afterwards the backing devices are complete without a cache. */
  async drain(): Promise<void> {
    await withSet(this.paths, { readOnly: false }, async (set) => {
      await this.#checkAll(set);
      await set.flushDirty(undefined);
    });
    for (const [index, path] of this.paths.backings.entries()) {
      const model = this.models[index]!;
      const bytes = new Uint8Array(readFileSync(path));
      const alone = bytes.subarray(this.case.sidecar ? 0 : HEAD_BYTES);
      this.refuse(model.wrongSectors(alone), `backing device ${index} alone`);
    }
  }

  async #checkAll(set: CacheSet): Promise<void> {
    for (const [index, model] of this.models.entries()) {
      this.refuse(model.wrongSectors(await readAll(set, index)), `read here, bcache${index}`);
    }
  }

  /** The disks of this set in the guest; a sidecar's image with the sidecar in front. */
  guestDisks(): GuestDisk[] {
    const { id, sidecar } = this.case;
    const disks = [{ serial: `${id}-c`, path: this.cachePath }];
    for (const [index, path] of this.paths.backings.entries()) {
      const joined = `${path}.joined`;
      if (sidecar) {
        writeFileSync(joined, Buffer.concat([readFileSync(sidecarPath(path)), readFileSync(path)]));
      }
      disks.push({ serial: `${id}-b${index}`, path: sidecar ? joined : path });
    }
    return disks;
  }

  /** Takes a joined image apart again. */
  afterGuest(): void {
    if (!this.case.sidecar) return;
    for (const path of this.paths.backings) {
      const joined = readFileSync(`${path}.joined`);
      writeFileSync(sidecarPath(path), joined.subarray(0, HEAD_BYTES));
      writeFileSync(path, joined.subarray(HEAD_BYTES));
    }
  }

  /** What the guest does with this set; ends with everything durable, but for `uncertain`. */
  script(slot: number): { certain: string; uncertain: string } {
    const { id, mode, maker } = this.case;
    const { kernelEnd } = this;
    this.before = this.models.map((model) => model.copy());
    const lines = [`register ${id}-c`];
    if (this.case.moving) lines.push(`put "$(set_of ${id}-c)/internal/copy_gc_enabled" 1`);
    const work = this.plan(KERNEL_PIECES, kernelEnd === "cut");
    const uncertain: string[] = [];
    for (const [index, one] of work.entries()) {
      const serial = `${id}-b${index}`;
      const isFlash = index === this.case.backings;
      const name = isFlash ? `volume=$(flash_of ${id}-c)` : `volume=$(volume_of ${serial})`;
      if (isFlash) {
        const create = `put "$(set_of ${id}-c)/flash_vol_create" ${VOLUME_BYTES}`;
        if (maker === "kernel" && !this.#kernelRan) lines.push(create);
        lines.push(`until_is 20 has_flash ${id}-c`);
      } else lines.push(`register ${serial}`, `until_is 20 runs ${serial}`);
      lines.push(name);
      if (maker === "kernel" && !isFlash) lines.push(`setting ${serial} cache_mode ${mode}`);
      lines.push(expectLine(`${serial}-before`, this.before[index]!, slot + index));
      for (const piece of one.certain) lines.push(copyLine("$volume", piece));
      lines.push("durable $volume", `collect ${id}-c`);
      // Before the power is cut: the host wants the collection whole, not the time it takes.
      if (index === this.models.length - 1) lines.push(`until_is 60 collected ${id}-c`);
      uncertain.push(name);
      for (const piece of one.uncertain) uncertain.push(copyLine("$volume", piece));
      if (kernelEnd === "cut") continue;
      lines.push(expectLine(`${serial}-after`, this.models[index]!, SLOTS + slot + index));
    }
    this.#kernelRan = true;
    return { certain: lines.join("\n"), uncertain: uncertain.join("\n") };
  }

  /** @throws when there are wrong sectors. */
  refuse(wrong: readonly number[], where: string): void {
    if (wrong.length === 0) return;
    const some = wrong.slice(0, 8).join(" ");
    throw new Error(`${where}: ${wrong.length} wrong sectors (${some}) of ${describe(this.case)}`);
  }
}

function expectLine(name: string, model: Model, slot: number): string {
  return `expect ${name} $volume ${model.hash(OPEN_FROM)} ${OPEN_FROM >> 20} ${slot}`;
}

function copyLine(volume: string, { unitBytes, from, to, count }: Piece): string {
  return `copy ${volume} ${unitBytes} ${from} ${to} ${count}`;
}

/** A case in words, for a message. */
export function describe(one: Case): string {
  return Object.entries(one).map(([name, value]) => `${name} ${value}`).join(", ");
}

/** @throws when the kernel read other bytes than were written. */
function checkWitness(lines: readonly string[], chains: readonly Chain[], path: string): void {
  const witness = new Uint8Array(readFileSync(path));
  for (const [place, chain] of chains.entries()) {
    for (const [index, model] of chain.before.entries()) {
      const name = `${chain.case.id}-b${index}`;
      const slot = 2 * place + index;
      const named = (word: string) => lines.includes(`${word} ${name}-before`);
      if (named("different")) {
        chain.refuse(model.wrongSectors(witness.subarray(0, VOLUME_BYTES)), "read by the kernel");
      }
      if (lines.includes(`different ${name}-after`)) {
        const wrong = chain.models[index]!.wrongSectors(witness.subarray(0, VOLUME_BYTES));
        chain.refuse(wrong, "read by the kernel after its own writes");
      }
      if (!named("same")) continue;
      const open = witness.subarray(slot << 20, (slot + 1) << 20);
      chain.refuse(model.wrongSectors(open, OPEN_FROM), "read by the kernel where it was open");
    }
  }
  const compared = lines.filter((line) => line.startsWith("same ")).length;
  if (compared < chains.length) throw new Error(`the kernel compared ${compared} volumes only`);
}

/** @returns how often it booted. */
async function bootWith(chains: readonly Chain[], dataPath: string, cut: boolean): Promise<number> {
  if (chains.length === 0) return 0;
  const scripts = chains.map((chain, place) => chain.script(2 * place));
  const witness = `${dataPath}.witness`;
  createFile(witness, 4 * SLOTS << 20);
  const lines = await boot({
    disks: [
      { serial: "data", path: dataPath },
      { serial: "witness", path: witness },
      ...chains.flatMap((chain) => chain.guestDisks()),
    ],
    script: [
      "DATA=$(disk data)",
      ...scripts.map(({ certain }) => certain),
      ...(cut ? [...scripts.map(({ uncertain }) => uncertain), "marker cut"] : ["stop_all"]),
    ].join("\n"),
    ...(cut ? { cutAt: "cut" } : {}),
  });
  for (const chain of chains) {
    chain.afterGuest();
    await chain.checkOffline();
  }
  checkWitness(lines, chains, witness);
  return 1;
}

/**
 * Runs all cases, in three boots.
 *
 * @returns how many boots it took. @throws at the first thing that is not as it must be.
 */
export async function runCases(
  cases: readonly Case[],
  options: { readonly folder: string; readonly seed: number },
): Promise<number> {
  const { folder, seed } = options;
  let boots = 0;
  mkdirSync(folder, { recursive: true });
  const data = dataDisk();
  const dataPath = join(folder, "data");
  writeFileSync(dataPath, data);
  const chains = cases.map((one, at) => new Chain(one, folder, seed * 1000 + at, data, dataPath));
  for (const chain of chains) {
    await chain.make();
    if (chain.case.maker === "ours") await chain.runOurs(false);
  }
  for (const end of ["stop", "cut"] as const) {
    const these = chains.filter((chain) => chain.case.kernelEnd === end);
    boots += await bootWith(these, dataPath, end === "cut");
  }
  for (const chain of chains) {
    await chain.runOurs(true);
    await chain.checkOffline();
  }
  // Cases that lost power before are stopped now, with all the others.
  for (const chain of chains) chain.kernelEnd = "stop";
  boots += await bootWith(chains, dataPath, false);
  for (const chain of chains) await chain.drain();
  rmSync(folder, { recursive: true });
  return boots;
}
