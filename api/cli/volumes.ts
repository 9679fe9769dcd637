/** `volume`: volumes on the cache alone. `uuids` and `forget`: whose data the cache has. */
import { parseSizeBytes } from "../../lib/base/units.ts";
import type { UuidStatus } from "../../lib/cache/ports.ts";
import { findMount } from "./find_mount.ts";
import { formatBytes, printable, table } from "./format.ts";
import { asUsage, type Program } from "./program.ts";

/** `volume create MOUNTPOINT SIZE [--label TEXT]`. */
export async function runVolumeCreate(
  program: Program,
  options: { mountPoint: string; size: string; label: string },
): Promise<void> {
  const sizeBytes = asUsage(() => parseSizeBytes(options.size, "size"));
  const client = await findMount(program, options.mountPoint);
  const volume = await client.createVolume({ sizeBytes, label: options.label });
  program.out(`${volume.name}: ${formatBytes(volume.sizeBytes)} on the cache alone\n`);
}

/** `volume resize MOUNTPOINT VOLUME SIZE [--force]`. */
export async function runVolumeResize(
  program: Program,
  options: { mountPoint: string; volume: string; size: string; force: boolean },
): Promise<void> {
  const sizeBytes = asUsage(() => parseSizeBytes(options.size, "size"));
  const client = await findMount(program, options.mountPoint);
  const { force } = options;
  const volume = await client.resizeVolume(options.volume, sizeBytes, { force });
  program.out(`${volume.name}: ${formatBytes(volume.sizeBytes)}\n`);
}

/** `volume destroy MOUNTPOINT VOLUME [--force]`. */
export async function runVolumeDestroy(
  program: Program,
  options: { mountPoint: string; volume: string; force: boolean },
): Promise<void> {
  const client = await findMount(program, options.mountPoint);
  await client.destroyVolume(options.volume, { force: options.force });
  program.out(`destroyed ${options.volume}\n`);
}

/** `uuids MOUNTPOINT [--json]`. */
export async function runUuids(
  program: Program,
  options: { mountPoint: string; json: boolean },
): Promise<void> {
  const uuids = await (await findMount(program, options.mountPoint)).uuids();
  if (options.json) program.out(`${JSON.stringify(uuids, null, 2)}\n`);
  else if (uuids.length === 0) program.out("the cache knows no device\n");
  else program.out(table(uuids.map(uuidRow)));
}

function uuidRow(entry: UuidStatus): string[] {
  return [
    entry.uuid,
    entry.device ?? "not here",
    `${formatBytes(entry.dirtyBytes)} dirty`,
    `${formatBytes(entry.cachedBytes)} cached`,
    `first ${day(entry.firstRegisteredSeconds)}`,
    `last ${day(entry.lastRegisteredSeconds)}`,
    entry.kind === "volume" ? "volume" : "",
    printable(entry.label),
  ];
}

function day(seconds: number): string {
  return new Date(seconds * 1000).toISOString().slice(0, 16).replace("T", " ");
}

/** `forget MOUNTPOINT UUID [--force]`. */
export async function runForget(
  program: Program,
  options: { mountPoint: string; uuid: string; force: boolean },
): Promise<void> {
  const client = await findMount(program, options.mountPoint);
  await client.forget(options.uuid, { force: options.force });
  program.out(`forgot ${printable(options.uuid)}\n`);
}
