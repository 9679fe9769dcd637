/**
 * `extract`: writes the merged image of a cached device, or of a flash-only volume. The image
 * appears under its name when it is complete and durable; before it has a name of its own.
 */
import * as fs from "node:fs";
import { basename, dirname, join } from "node:path";
import process from "node:process";
import { BcacheError } from "../../lib/base/errors.ts";
import type { Device } from "../../lib/device/device.ts";
import { createSparseFile, removeCreatedFile } from "../../lib/device/create.ts";
import { openFileDevice } from "../../lib/device/file.ts";
import { systemError } from "../../lib/device/host.ts";
import { type Extraction, type ExtractResult, planExtract } from "../../lib/offline/extract.ts";
import type { VolumeName } from "../../lib/offline/extract_target.ts";
import { findingText } from "../../lib/offline/findings.ts";
import type { OnProgress } from "../../lib/offline/index_view.ts";
import { counted, formatBytes, oneLine, printable } from "./format.ts";
import { OfflineDevices } from "./offline_devices.ts";
import { withProgress } from "./offline_progress.ts";
import { DamageError, type Program } from "./program.ts";

export interface ExtractCommand {
  readonly cachePath: string;
  /** The backing device's path, or a flash-only volume. */
  readonly of: { backingPath: string } | { volume: VolumeName };
  readonly outputPath: string;
  readonly force: boolean;
  readonly rescue: boolean;
  readonly json: boolean;
}

/** Writes the image; throws DamageError when parts of it are in doubt (only in a rescue). */
export async function runExtract(program: Program, command: ExtractCommand): Promise<void> {
  refuseOutput(command);
  const devices = new OfflineDevices();
  try {
    const cache = await devices.file(command.cachePath, { alone: true });
    const of = "backingPath" in command.of
      ? { backing: await devices.backing(command.of.backingPath) }
      : command.of;
    const { plan, result } = await withProgress(
      program,
      (progress) => extract(command, { cache, of }, progress),
    );
    report(program, command, { plan, result });
  } finally {
    await devices.close();
  }
}

async function extract(
  command: ExtractCommand,
  from: { cache: Device; of: { backing: Device } | { volume: VolumeName } },
  progress: OnProgress | undefined,
): Promise<{ plan: Extraction; result: ExtractResult }> {
  const more = progress === undefined ? {} : { progress };
  const plan = await planExtract({ ...from, rescue: command.rescue, ...more });
  return { plan, result: await writeImage(command.outputPath, plan) };
}

/** Nothing that is there is overwritten unless that was asked for, and never an input. */
function refuseOutput({ outputPath, force, cachePath, of }: ExtractCommand): void {
  const there = statOf(outputPath);
  if (there === undefined) {
    const folder = dirname(outputPath);
    if (statOf(folder)?.isDirectory()) return;
    throw new BcacheError(
      "NotFound",
      `${outputPath}: there is no folder ${folder}; make it with mkdir -p ${folder}, ` +
        "or name another file",
    );
  }
  if (!there.isFile()) {
    throw new BcacheError(
      "InvalidArgument",
      `${outputPath} is not a regular file; name a file for the image, then copy it`,
    );
  }
  const inputs = [["cache device", cachePath]];
  if ("backingPath" in of) inputs.push(["backing device", of.backingPath]);
  for (const [kind, input] of inputs as [string, string][]) {
    const found = statOf(input);
    if (found === undefined || found.ino !== there.ino || found.dev !== there.dev) continue;
    throw new BcacheError(
      "InvalidArgument",
      `${outputPath} is the ${kind} itself, which is only read; ` +
        "name another file for the image with -o",
    );
  }
  if (force) return;
  const advice = "name another file, or add --force to replace it";
  throw new BcacheError("Exists", `${outputPath} exists already; ${advice}`);
}

function statOf(path: string): fs.Stats | undefined {
  try {
    return fs.statSync(path, { throwIfNoEntry: false });
  } catch (error) {
    throw systemError(`${path} cannot be looked at`, error);
  }
}

/** Writes to a file beside, makes it durable, then gives it its name: all or nothing. */
async function writeImage(path: string, plan: Extraction): Promise<ExtractResult> {
  removeStaleParts(path);
  const partPath = `${path}.part-${process.pid}`;
  const stop = new AbortController();
  const onSignal = () => stop.abort();
  createSparseFile(partPath, plan.sizeSectors * 512);
  process.on("SIGINT", onSignal);
  process.on("SIGTERM", onSignal);
  try {
    const output = await openFileDevice(partPath);
    let result: ExtractResult;
    try {
      result = await plan.copyTo(output, stop.signal);
      await output.flush();
    } finally {
      await output.close();
    }
    fs.renameSync(partPath, path);
    syncFolder(path);
    return result;
  } catch (error) {
    removeCreatedFile(partPath);
    throw error;
  } finally {
    process.off("SIGINT", onSignal);
    process.off("SIGTERM", onSignal);
  }
}

/** What extracts to the same image left behind when they were killed. */
function removeStaleParts(path: string): void {
  const prefix = `${basename(path)}.part-`;
  for (const name of fs.readdirSync(dirname(path))) {
    const pid = name.startsWith(prefix) ? name.slice(prefix.length) : "";
    if (!/^[1-9]\d*$/.test(pid) || fs.existsSync(`/proc/${pid}`)) continue;
    removeCreatedFile(join(dirname(path), name));
  }
}

function syncFolder(path: string): void {
  const fd = fs.openSync(dirname(path), "r");
  try {
    fs.fsyncSync(fd);
  } finally {
    fs.closeSync(fd);
  }
}

function report(
  program: Program,
  { outputPath, json }: ExtractCommand,
  { plan, result }: { plan: Extraction; result: ExtractResult },
): void {
  if (json) {
    const { findings } = plan;
    program.out(`${JSON.stringify({ output: outputPath, ...result, findings }, null, 2)}\n`);
  } else program.out(textOf(outputPath, plan, result));
  const errors = plan.findings.filter((finding) => finding.severity === "error").length;
  if (errors === 0 && result.doubtful.length === 0) return;
  const doubts = result.doubtful.length + result.doubtfulOmitted;
  const said = doubts === 0
    ? "no range of it is in doubt"
    : `${counted(doubts, "range")} of it in doubt; check what is in them`;
  throw new DamageError(`${outputPath} was rescued from a damaged set: ${said}`);
}

function textOf(outputPath: string, plan: Extraction, result: ExtractResult): string {
  const lines = plan.findings.map((finding) => oneLine(findingText(finding)));
  for (const { startByte, endByte, why } of result.doubtful) {
    lines.push(`in doubt: bytes ${startByte}-${endByte - 1}: ${why}`);
  }
  if (result.doubtfulOmitted > 0) {
    lines.push(`... and ${result.doubtfulOmitted} more ranges in doubt`);
  }
  lines.push(
    `${printable(outputPath)}: ${formatBytes(result.sizeBytes)}, ` +
      `${formatBytes(result.fromCacheBytes)} of it from the cache, ` +
      `${formatBytes(result.writtenBytes)} written`,
  );
  return `${lines.join("\n")}\n`;
}
