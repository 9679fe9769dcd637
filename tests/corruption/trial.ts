/**
 * One damage: the devices get it, `check` looks at them, the engine opens them, every sector is
 * read. What comes of it is judged against what was written.
 */
import { BcacheError } from "../../lib/base/errors.ts";
import type { CacheSet } from "../../lib/cache/cache_set.ts";
import type { Device, WriteOptions } from "../../lib/device/device.ts";
import { ForwardingDevice } from "../../lib/device/forwarding.ts";
import { MemoryDevice } from "../../lib/device/memory.ts";
import { OverlayDevice } from "../../lib/device/overlay.ts";
import { checkCache, type CheckReport } from "../../lib/offline/check.ts";
import { planExtract } from "../../lib/offline/extract.ts";
import type { Change } from "./damage.ts";
import { deviceOf } from "./damage.ts";
import type { Place } from "./places.ts";
import { type Devices, openSample, type Sample, versionOf } from "./set.ts";

/**
 * - refuse: the set does not start, and nothing is lost: with the damage undone all is there
 * - repair: it starts, all is right, and afterwards `check` finds nothing that it found before
 * - proceed: it starts, and all is right
 * - old data: it starts, and some of what it serves is an older version
 * - wrong data: it starts, and some of what it serves nobody ever wrote there
 */
export type Outcome = "refuse" | "repair" | "proceed" | "old data" | "wrong data";

export interface Observed {
  readonly outcome: Outcome;
  /** The gravest of what `check` found before. */
  readonly check: "error" | "warning" | "nothing";
  /** The refusal, or what was wrong. */
  readonly detail: string;
  /** Warnings and errors in the log of the start. */
  readonly told: readonly string[];
}

/** Counts what is written. */
class WatchedDevice extends ForwardingDevice {
  writes = 0;

  constructor(inner: Device) {
    super(inner, {
      sync: {
        read: (atSector, into) => inner.sync!.read(atSector, into),
        write: (atSector, from) => {
          this.writes++;
          inner.sync!.write(atSector, from);
        },
      },
    });
  }

  override write(atSector: number, from: Uint8Array, options?: WriteOptions): Promise<void> {
    this.writes++;
    return super.write(atSector, from, options);
  }

  override zero(atSector: number, sectors: number): Promise<void> {
    this.writes++;
    return super.zero(atSector, sectors);
  }
}

function gravest(report: CheckReport): Observed["check"] {
  return report.errors > 0 ? "error" : report.warnings > 0 ? "warning" : "nothing";
}

const VOLUME_SECTORS = 4096;

interface Fault {
  readonly outcome: "old data" | "wrong data";
  readonly detail: string;
}

/** What is wrong with the bytes of a device's volume; undefined: all are the newest. */
function judge(
  sample: Sample,
  device: number,
  image: Uint8Array,
  isDoubtful: (sector: number) => boolean = () => false,
): Fault | undefined {
  let old = 0;
  let wrong = 0;
  for (let sector = 0; sector < VOLUME_SECTORS; sector++) {
    if (isDoubtful(sector)) continue;
    const bytes = image.subarray(sector * 512, (sector + 1) * 512);
    const version = versionOf(bytes, device * VOLUME_SECTORS + sector);
    const isUnwritten = device >= sample.backings.length && sample.newest[device]![sector] === 0;
    if (isUnwritten && bytes.every((byte) => byte === 0)) continue;
    if (version === undefined) wrong++;
    else if (version !== sample.newest[device]![sector]) old++;
  }
  if (old + wrong === 0) return undefined;
  const detail = `of device ${device} ${old} sectors are old, ${wrong} were never written so`;
  return { outcome: wrong > 0 ? "wrong data" : "old data", detail };
}

async function deviceImage(set: CacheSet, path: string): Promise<Uint8Array> {
  const { devices } = await set.status();
  return await imageOf(set, devices.find((each) => each.backingPath === path)!.name);
}

async function imageOf(set: CacheSet, name: string): Promise<Uint8Array> {
  const volume = set.volumes.find((each) => each.name === name)!;
  const image = new Uint8Array(VOLUME_SECTORS * 512);
  for (let at = 0; at < image.length; at += 65536) {
    await volume.read(at, image.subarray(at, at + 65536));
  }
  return image;
}

/** The volume of the cache itself, which may not be there, or be shorter. */
async function judgeVolume(sample: Sample, set: CacheSet): Promise<Fault | undefined> {
  const { volumes: [volume] } = await set.status();
  if (volume !== undefined && volume.sizeBytes >= VOLUME_SECTORS * 512) {
    return judge(sample, sample.backings.length, await imageOf(set, volume.name));
  }
  const found = volume === undefined ? "is not served" : `has ${volume.sizeBytes} bytes`;
  return { outcome: "old data", detail: `the volume ${found}` };
}

/** Opens, reads all, closes. Rejects with what opening rejects with. */
async function serve(
  sample: Sample,
  devices: Devices,
  log: string[] = [],
): Promise<Fault | undefined> {
  const { set } = await openSample(devices, 99, log);
  let wrong: Fault | undefined;
  try {
    for (const [number, backing] of devices.backings.entries()) {
      wrong ??= judge(sample, number, await deviceImage(set, backing.name));
    }
    if (sample.newest.length > devices.backings.length) wrong ??= await judgeVolume(sample, set);
  } finally {
    await set.close();
  }
  return wrong;
}

/** What a rescue takes is right, or listed as doubtful. */
async function judgeRescue(sample: Sample, devices: Devices): Promise<void> {
  for (const [number, backing] of devices.backings.entries()) {
    const options = { cache: devices.cache, of: { backing }, rescue: true };
    const image = new Uint8Array(VOLUME_SECTORS * 512);
    let doubtful: ReadonlyArray<{ startByte: number; endByte: number }>;
    try {
      const plan = await planExtract(options);
      const output = new MemoryDevice(plan.sizeSectors);
      ({ doubtful } = await plan.copyTo(output));
      await output.read(0, image);
    } catch (error) {
      if (error instanceof BcacheError) continue; // It says that nothing can be rescued.
      throw error;
    }
    const isDoubtful = (sector: number) =>
      doubtful.some(({ startByte, endByte }) =>
        startByte < (sector + 1) * 512 && endByte > sector * 512
      );
    const wrong = judge(sample, number, image, isDoubtful);
    if (wrong !== undefined) throw new Error(`rescued without a word: ${wrong.detail}`);
  }
}

/** Damages copies of the sample's devices, and sees what becomes of them. */
export async function tryDamage(sample: Sample, place: Place, change: Change): Promise<Observed> {
  const watched = (device: Device) => new WatchedDevice(new OverlayDevice(device));
  const devices = { cache: watched(sample.cache), backings: sample.backings.map(watched) };
  const all = [devices.cache, ...devices.backings];
  const target = deviceOf(devices, place);
  await target.write(change.sector, change.bytes);
  const report = await checkCache(devices);
  const check = gravest(report);
  for (const device of all) device.writes = 0;
  const log: string[] = [];
  try {
    const wrong = await serve(sample, devices, log);
    const told = log.filter((line) => !line.startsWith("info"));
    if (wrong !== undefined) return { ...wrong, check, told };
    const after = gravest(await checkCache(devices));
    const outcome = check !== "nothing" && after === "nothing" ? "repair" : "proceed";
    const detail = report.findings.map((each) => each.what).join("; ");
    return { outcome, check, detail, told };
  } catch (error) {
    if (!(error instanceof BcacheError)) throw error;
    await judgeRescue(sample, devices);
    await mustHeal(sample, { devices, target, place: change });
    return { outcome: "refuse", check, detail: error.message, told: [] };
  }
}

/** After a refusal: the sound bytes put back, everything is there. */
async function mustHeal(
  sample: Sample,
  { devices, target, place }: { devices: Devices; target: Device; place: Change },
): Promise<void> {
  const sound = new Uint8Array(place.bytes.length);
  const names = [devices.cache, ...devices.backings].map((device) => device.name);
  const origin = [sample.cache, ...sample.backings][names.indexOf(target.name)]!;
  await origin.read(place.sector, sound);
  await target.write(place.sector, sound);
  const wrong = await serve(sample, devices);
  if (wrong !== undefined) throw new Error(`after a refusal, mended: ${wrong.detail}`);
}
