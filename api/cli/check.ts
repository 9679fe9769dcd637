/** `check`: looks a cache set over without mounting it, and says what is wrong. */
import { mixtureAdvice } from "../../lib/cache/members/sidecar.ts";
import { checkCache, type CheckedDevice, type CheckReport } from "../../lib/offline/check.ts";
import { type Finding, findingText } from "../../lib/offline/findings.ts";
import type { BcacheError } from "../../lib/base/errors.ts";
import type { Device } from "../../lib/device/device.ts";
import { formatUuid } from "../../lib/ondisk/uuid.ts";
import { counted, formatBytes, oneLine, printable } from "./format.ts";
import { isDamage, OfflineDevices, refuseBackingDevice } from "./offline_devices.ts";
import { withProgress } from "./offline_progress.ts";
import { DamageError, type Program } from "./program.ts";

export interface CheckCommand {
  readonly cachePath: string;
  readonly backingPaths: readonly string[];
  readonly json: boolean;
}

/** What the superblock of a backing device says of it. */
const STATE_WORDS = {
  none: "attached to no cache",
  clean: "clean",
  dirty: "dirty",
  stale: "used without its cache since",
} as const;

/** Prints the report; throws DamageError when there are errors in it. */
export async function runCheck(program: Program, command: CheckCommand): Promise<void> {
  const devices = new OfflineDevices();
  try {
    const cache = await devices.file(command.cachePath, { alone: true });
    await refuseBackingDevice(cache, "give it with --backing");
    const { backings, refused } = await openBackings(devices, command.backingPaths);
    const report = await withProgress(program, (progress) =>
      checkCache({
        cache,
        backings,
        refused: (cached) => refused.map((one) => one(cached)),
        ...(progress === undefined ? {} : { progress }),
      }));
    program.out(command.json ? `${JSON.stringify(report, null, 2)}\n` : textOf(report, command));
    if (report.clean) return;
    const errors = counted(report.errors, "error");
    throw new DamageError(`${command.cachePath}: ${errors} found; see the report`);
  } finally {
    await devices.close();
  }
}

/** What is wrong with a backing device, given what the cache holds of whom. */
type Refusal = (cached: readonly CheckedDevice[]) => Finding;

async function openBackings(
  devices: OfflineDevices,
  paths: readonly string[],
): Promise<{ backings: Device[]; refused: Refusal[] }> {
  const backings: Device[] = [];
  const refused: Refusal[] = [];
  for (const path of paths) {
    try {
      backings.push(await devices.backing(path));
    } catch (error) {
      if (!isDamage(error)) throw error;
      refused.push(await refusalOf(devices, path, error));
    }
  }
  return { backings, refused };
}

/** An image that was changed is told apart: what helps depends on whether its data is dirty. */
async function refusalOf(
  devices: OfflineDevices,
  path: string,
  error: BcacheError,
): Promise<Refusal> {
  const [what = "", ...rest] = error.message.replace(`${path}: `, "").split("; ");
  const common = { severity: "error", subject: "backing", device: path, what } as const;
  const advice = rest.join("; ") || "restore it from a copy";
  const uuid = await devices.uuidOfChanged(path);
  return (cached) => {
    if (uuid === undefined) return { ...common, advice };
    const found = cached.find((each) => each.uuid === formatUuid(uuid));
    if (found === undefined || found.dirtyBytes === 0) return { ...common, advice };
    const dirty = `the cache has ${formatBytes(found.dirtyBytes)} of it that are dirty`;
    return { ...common, advice: `${dirty}: ${mixtureAdvice(path, uuid)}` };
  };
}

/** Whether a finding may be why keys are not counted. */
function hidesData({ severity, subject }: Finding): boolean {
  return severity === "error" && (subject === "btree" || subject === "journal");
}

function textOf(report: CheckReport, { cachePath }: CheckCommand): string {
  const lines = report.findings.map((finding) => oneLine(findingText(finding)));
  if (report.omitted > 0) lines.push(`... and ${report.omitted} more`);
  const verdict = report.clean
    ? report.warnings === 0 ? "clean" : `clean, ${counted(report.warnings, "warning")}`
    : `${counted(report.errors, "error")}, ${counted(report.warnings, "warning")}`;
  const set = report.setUuid === undefined ? "" : ` set ${report.setUuid}:`;
  lines.push(`${printable(cachePath)}:${set} ${verdict}`);
  if (report.started === false) lines.push("  never started: nothing is in it");
  const { journal, btree, buckets } = report;
  if (journal !== undefined) {
    lines.push(
      `  journal: newest entry ${journal.newestSeq}, ` +
        `${journal.entries} to replay with ${journal.keys} keys`,
    );
  }
  if (btree !== undefined) {
    lines.push(
      `  b-tree: ${btree.nodes} nodes in ${btree.levels} levels, ${btree.extents} extents, ` +
        `${btree.staleExtents} of them stale`,
    );
  }
  if (buckets !== undefined) {
    lines.push(
      `  buckets: ${buckets.total}, ${buckets.data} with data, ${buckets.metadata} metadata`,
    );
  }
  // What could not be read may have held more.
  const least = report.findings.some(hidesData) ? "at least " : "";
  for (const device of report.devices) {
    if (device.kind === "invalidated") {
      // Its place in the table has a UUID that stands for none.
      lines.push(
        `  ${device.inode}: a device that was detached or forgotten: nothing is kept of it`,
      );
      continue;
    }
    const label = device.label === "" ? "" : ` ${JSON.stringify(printable(device.label))}`;
    lines.push(
      `  ${device.inode}: ${device.kind} ${device.uuid}${label}: ` +
        `${least}${formatBytes(device.cachedBytes)} cached, ` +
        `${least}${formatBytes(device.dirtyBytes)} dirty`,
    );
  }
  for (const backing of report.backings) {
    const known = backing.inode === undefined
      ? "not a device of this cache"
      : `device ${backing.inode} of this cache`;
    lines.push(`  ${printable(backing.name)}: ${known}, ${STATE_WORDS[backing.state]}`);
  }
  return `${lines.join("\n")}\n`;
}
