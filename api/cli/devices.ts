/** `attach`, `detach` and `stop`: devices come to a running set and leave it. */
import { resolve } from "node:path";
import { findMount } from "./find_mount.ts";
import { formatBytes, printable } from "./format.ts";
import type { Program } from "./program.ts";
import { withProgress } from "./progress.ts";

/** `attach MOUNTPOINT BACKING [--force]`. */
export async function runAttach(
  program: Program,
  options: { mountPoint: string; backingPath: string; force: boolean },
): Promise<void> {
  const { mountPoint, force } = options;
  const client = await findMount(program, mountPoint);
  const device = await client.attach(resolve(options.backingPath), { force });
  program.out(
    `${printable(device.backingPath)} is ${device.name}: ${formatBytes(device.sizeBytes)}, ` +
      `${device.cacheMode}, ${device.state}, ${formatBytes(device.dirtyBytes)} dirty\n`,
  );
}

/** `detach MOUNTPOINT DEVICE`. */
export async function runDetach(
  program: Program,
  options: { mountPoint: string; device: string },
): Promise<void> {
  const { mountPoint, device } = options;
  const client = await findMount(program, mountPoint);
  await withProgress(program, client, {
    device,
    work: async () => void await client.detach(device),
  });
  program.out(
    `${device} is detached and goes on without a cache; ` +
      `bcache-fuse stop ${mountPoint} ${device} ends it\n`,
  );
}

/** `stop MOUNTPOINT DEVICE [--force]`. */
export async function runStop(
  program: Program,
  options: { mountPoint: string; device: string; force: boolean },
): Promise<void> {
  const { mountPoint, device, force } = options;
  const client = await findMount(program, mountPoint);
  const { devices } = await client.status();
  const before = devices.find((each) => each.name === device);
  await client.stop(device, { force });
  const dirtyBytes = before?.dirtyBytes ?? 0;
  const kept = dirtyBytes === 0
    ? ""
    : `; ${formatBytes(dirtyBytes)} of it are only in the cache: attach it again to get them back`;
  program.out(`stopped ${device}${kept}\n`);
}
