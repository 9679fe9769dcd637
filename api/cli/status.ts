/** `status`: what is mounted, and how it does. */
import type { DeviceStatus, SetStatus, VolumeStatus } from "../../lib/cache/ports.ts";
import { type ControlClient, ProcessGoneError } from "../control/client.ts";
import { isDeadMount, realMountPoint } from "../control/mount_table.ts";
import type { MountInfo } from "../http/schema.ts";
import {
  deadMounts,
  findAllMounts,
  findMount,
  unreachableMounts,
  WHY_MISSING,
} from "./find_mount.ts";
import { counted, formatBytes, printable, table } from "./format.ts";
import type { Program } from "./program.ts";

interface MountStatus {
  mount: MountInfo;
  /** Absent while the set is starting. */
  set?: SetStatus;
}

/** A mount that only the kernel still knows of. */
interface DeadMount {
  mount: { mountPoint: string };
  dead: true;
}

/** A mount that is served, and whose control socket is missing. */
interface LostMount {
  mount: { mountPoint: string; pid: number | undefined };
  unreachable: true;
}

/** `status [MOUNTPOINT] [--json]`. With JSON one object for one mount, a list for all. */
export async function runStatus(
  program: Program,
  options: { mountPoint: string | undefined; json: boolean },
): Promise<void> {
  const { mountPoint } = options;
  if (mountPoint !== undefined) return await showOne(program, mountPoint, options.json);
  const asked = await Promise.allSettled((await findAllMounts(program)).map(statusOf));
  const all = asked.filter((result) => result.status === "fulfilled").map(({ value }) => value);
  // One that ended while it was asked is simply not there any more.
  const [silent] = asked.filter((result) => result.status === "rejected")
    .filter(({ reason }) => !(reason instanceof ProcessGoneError));
  // One that hangs must not hide the others.
  if (silent !== undefined && all.length === 0) throw silent.reason;
  const dead = deadMounts(all.map(({ mount }) => mount.mountPoint));
  const lost = unreachableMounts(program, dead).map(({ mountPoint, pid }): LostMount => ({
    mount: { mountPoint, pid },
    unreachable: true,
  }));
  printAll(program, { all, dead: dead.map(deadMount), lost }, options.json);
  if (silent !== undefined) throw silent.reason;
}

/** A dead mount is an error, and with JSON an object as well. */
async function showOne(program: Program, mountPoint: string, json: boolean): Promise<void> {
  let found: MountStatus;
  try {
    found = await statusOf(await findMount(program, mountPoint));
  } catch (error) {
    const real = realMountPoint(mountPoint);
    if (json && isDeadMount(real)) program.out(jsonText(deadMount(real)));
    throw error;
  }
  program.out(json ? jsonText(found) : statusText(found));
}

function jsonText(value: unknown): string {
  return `${JSON.stringify(value, null, 2)}\n`;
}

function printAll(
  program: Program,
  { all, dead, lost }: {
    all: readonly MountStatus[];
    dead: readonly DeadMount[];
    lost: readonly LostMount[];
  },
  json: boolean,
): void {
  if (json) return program.out(jsonText([...all, ...dead, ...lost]));
  if (all.length + dead.length + lost.length === 0) program.out("nothing is mounted\n");
  program.out([...all.map(statusText), ...dead.map(deadText), ...lost.map(lostText)].join("\n"));
}

function lostText({ mount }: LostMount): string {
  const path = printable(mount.mountPoint);
  return `${path}  PID ${mount.pid ?? "unknown"}, UNREACHABLE: its control socket is missing ` +
    `${WHY_MISSING}; run bcache-fuse unmount ${path}\n`;
}

function deadMount(mountPoint: string): DeadMount {
  return { mount: { mountPoint }, dead: true };
}

function deadText({ mount }: DeadMount): string {
  const path = printable(mount.mountPoint);
  return `${path}  DEAD: its process has ended; run bcache-fuse unmount ${path}\n`;
}

async function statusOf(client: ControlClient): Promise<MountStatus> {
  const mount = await client.mountInfo();
  try {
    const set = await client.status();
    // The mount tells what it was started with; since then devices may have come and gone.
    return { mount: { ...mount, backingPaths: set.devices.map(pathOf) }, set };
  } catch (error) {
    if (error instanceof ProcessGoneError) throw error;
    return { mount }; // Starting or ending: that much is told.
  }
}

function pathOf({ backingPath }: DeviceStatus): string {
  return backingPath;
}

/** One mount as text, one paragraph. */
export function statusText({ mount, set }: MountStatus): string {
  const head = `${printable(mount.mountPoint)}  PID ${mount.pid}, ` +
    `${mount.httpAddress ?? "HTTP off"}${mount.readOnly ? ", read-only" : ""}\n`;
  if (!set) return `${head}  not ready\n`;
  const failed = set.failed === undefined ? "" : `  FAILED: ${printable(set.failed)}\n`;
  const cache = `  cache ${printable(set.cachePath)}  ${formatBytes(set.sizeBytes)}, ` +
    `${Math.round(set.inUsePercent)} % in use, set ${set.setUuid}\n`;
  return head + failed +
    (set.warnings ?? []).map((text) => `  WARNING: ${printable(text)}\n`).join("") +
    cache + table(rowsOf(set)) + errorLine("cache", set) +
    set.devices.toSorted(byNumber).map((device) => errorLine(device.name, device)).join("");
}

/** Devices and volumes, whose numbers are from one row. */
function rowsOf({ devices, volumes }: SetStatus): string[][] {
  return [
    ...devices.map((device) => ({ name: device.name, row: deviceRow(device) })),
    ...volumes.map((volume) => ({ name: volume.name, row: volumeRow(volume) })),
  ].sort(byNumber).map(({ row }) => row);
}

/** bcache2 before bcache10. */
function byNumber(a: { name: string }, b: { name: string }): number {
  return a.name.localeCompare(b.name, "en", { numeric: true });
}

function inBrackets(label: string): string {
  return label === "" ? "" : `(${printable(label)})`;
}

/** Errors so far: those that count towards a limit, and the last of any kind. */
function errorLine(
  name: string,
  { ioErrors, lastError }: { ioErrors: number; lastError?: string },
): string {
  if (lastError === undefined) return "";
  const count = ioErrors === 0 ? "" : `${counted(ioErrors, "I/O error")}, `;
  return `  ${name}: ${count}the last error: ${printable(lastError)}\n`;
}

function deviceRow(device: DeviceStatus): string[] {
  const { cacheHits, cacheMisses, cacheHitRatio } = device.stats;
  // All is written back, and the superblock is about to say so.
  const isDone = device.state === "dirty" && device.dirtyBytes === 0;
  const shown = isDone ? "not marked clean yet" : device.state;
  const state = device.detaching ? `${shown}, detaching` : shown;
  return [
    `  ${device.name}`,
    formatBytes(device.sizeBytes),
    device.cacheMode,
    device.service === undefined ? state : `${state}, ${device.service}`,
    `${formatBytes(device.dirtyBytes)} dirty`,
    `${Math.round(cacheHitRatio)} % hits of ${cacheHits + cacheMisses}`,
    `${printable(device.backingPath)} ${inBrackets(device.label)}`.trimEnd(),
  ];
}

function volumeRow(volume: VolumeStatus): string[] {
  return [
    `  ${volume.name}`,
    formatBytes(volume.sizeBytes),
    "volume",
    "on the cache alone",
    `${formatBytes(volume.usedBytes)} used`,
    "",
    inBrackets(volume.label),
  ];
}
