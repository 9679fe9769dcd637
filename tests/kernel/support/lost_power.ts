/**
 * Our side of the chain when its machine loses power: the engine runs over simulated disks that
 * hold the images and have volatile write caches. In the middle of its work the power goes, and
 * what no flush covers is kept, lost or torn, sector by sector; that is what the images hold then.
 * (A killed process loses nothing that it had given to the host.)
 */
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { CacheSet } from "../../../lib/cache/cache_set.ts";
import { sidecarPath } from "../../../lib/cache/members/open_backing.ts";
import { DiskImage, zeroSectors } from "../../simulation/disk_image.ts";
import { CUT_POLICIES, imageAfterCut } from "../../simulation/power_cut.ts";
import { SimClock } from "../../simulation/sim_clock.ts";
import { HARD_DISK, SimDisk, SSD } from "../../simulation/sim_disk.ts";
import type { SimRandom } from "../../simulation/sim_random.ts";
import { type Orders, writePieces } from "./ours.ts";
import { SECTOR } from "./pieces.ts";

/** Events of the simulated machine from the flush to the cut: up to some rounds of writes. */
const EVENTS_MAX = 4000;

/** Files that are one disk: an image, or a sidecar and the image behind it. */
function filesOf(path: string): string[] {
  return existsSync(sidecarPath(path)) ? [sidecarPath(path), path] : [path];
}

/** Carries out the orders, and cuts the power in the midst of those that are uncertain. */
export async function writeAndLosePower(orders: Orders, random: SimRandom): Promise<void> {
  const clock = new SimClock({ permute: random.fork(1) });
  const disk = (name: string, path: string, number: number): SimDisk => {
    const bytes = Buffer.concat(filesOf(path).map((file) => readFileSync(file)));
    const image = new DiskImage(bytes.length / SECTOR, zeroSectors);
    image.write(0, bytes);
    const latency = number === 0 ? SSD : HARD_DISK;
    const common = { name, clock, latency, random: random.fork(10 + number) };
    return new SimDisk({ ...common, sizeSectors: image.sizeSectors, image });
  };
  const { cache: cachePath, backings } = orders.paths;
  const cache = disk("cache", cachePath, 0);
  const disks = backings.map((path, at) => ({ path, device: disk(path, path, 1 + at) }));
  const complaints: string[] = [];
  const set = await clock.run(CacheSet.open({
    cache,
    backings: disks,
    clock,
    random: random.fork(2),
    log: (level, message) => level === "info" || complaints.push(message),
  })) as CacheSet;
  const data = new Uint8Array(readFileSync(orders.dataPath));
  await clock.run(writeAll(set, orders.certain, data));
  let events = random.between(1, EVENTS_MAX);
  await clock.run(writeForEver(set, orders, data), { stopped: () => events-- <= 0 });
  if (complaints.length > 0) throw new Error(`the engine logged: ${complaints.join("; ")}`);
  const policy = random.pick(CUT_POLICIES);
  for (const { path, device } of [{ path: cachePath, device: cache }, ...disks]) {
    const after = imageAfterCut(device.snapshot(), policy, random.fork(3));
    let sector = 0;
    for (const file of filesOf(path)) {
      const bytes = new Uint8Array(readFileSync(file).length);
      after.read(sector, bytes);
      writeFileSync(file, bytes);
      sector += bytes.length / SECTOR;
    }
  }
}

async function writeAll(set: CacheSet, pieces: Orders["certain"], data: Uint8Array): Promise<void> {
  for (const [index, own] of pieces.entries()) await writePieces(set, index, own, data);
  for (const volume of set.volumes) await volume.flush();
}

async function writeForEver(set: CacheSet, orders: Orders, data: Uint8Array): Promise<never> {
  for (;;) {
    for (const [index, own] of orders.uncertain.entries()) {
      await writePieces(set, index, own, data);
      await set.volumes[index]!.flush();
    }
  }
}
