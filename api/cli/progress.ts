/** Progress of a write-back: a bar on a terminal, plain lines elsewhere. */
import { Presets, SingleBar } from "cli-progress";
import type { CacheControl } from "../../lib/cache/ports.ts";
import { formatBytes } from "./format.ts";
import type { Program } from "./program.ts";

const POLL_MS = 250;

/**
 * Writes all dirty data of the set back and shows how it goes. Resolves with the bytes that were
 * dirty at the start, rejects as `flushDirty` does.
 */
export async function flushWithProgress(program: Program, control: CacheControl): Promise<number> {
  const work = (): Promise<void> => control.flushDirty(undefined);
  return await withProgress(program, control, { device: undefined, work });
}

/**
 * Shows the falling number of dirty bytes, of a device or of all, while `work` is done. Resolves
 * with what was dirty at the start, rejects as `work` does.
 */
export async function withProgress(
  program: Program,
  control: CacheControl,
  task: { device: string | undefined; work: () => Promise<void> },
): Promise<number> {
  const startBytes = await dirtyBytesOf(control, task.device);
  const display = program.isTerminal ? bar() : lines(program);
  display.start(startBytes);
  let isDone = false;
  const work = task.work().finally(() => {
    isDone = true;
  });
  const watch = async (): Promise<void> => {
    while (!isDone) {
      await Promise.race([work, new Promise((resolve) => setTimeout(resolve, POLL_MS))]);
      if (!isDone) display.update(await dirtyBytesOf(control, task.device));
    }
  };
  try {
    await Promise.all([work, watch()]);
    display.end(true);
  } catch (error) {
    display.end(false);
    throw error;
  }
  return startBytes;
}

async function dirtyBytesOf(control: CacheControl, name: string | undefined): Promise<number> {
  const { devices } = await control.status();
  return devices.filter((device) => name === undefined || device.name === name)
    .reduce((sum, device) => sum + device.dirtyBytes, 0);
}

interface Display {
  start(dirtyBytes: number): void;
  update(dirtyBytes: number): void;
  end(isClean: boolean): void;
}

function bar(): Display {
  const single = new SingleBar({
    format: "writing back {bar} {percentage}% | {left} left | {eta_formatted}",
    hideCursor: true,
    clearOnComplete: true,
    stopOnComplete: false,
  }, Presets.shades_classic);
  let totalBytes = 0;
  return {
    start: (dirtyBytes) => {
      totalBytes = dirtyBytes;
      single.start(dirtyBytes, 0, { left: formatBytes(dirtyBytes) });
    },
    update: (dirtyBytes) => {
      // Somebody may be writing meanwhile: the total grows, the bar never runs backwards past 0.
      totalBytes = Math.max(totalBytes, dirtyBytes);
      single.setTotal(totalBytes);
      single.update(totalBytes - dirtyBytes, { left: formatBytes(dirtyBytes) });
    },
    end: (isClean) => {
      if (isClean) single.update(totalBytes, { left: formatBytes(0) });
      single.stop();
    },
  };
}

function lines(program: Program): Display {
  let next = Infinity;
  return {
    start: (dirtyBytes) => {
      if (dirtyBytes > 0) program.err(`writing back ${formatBytes(dirtyBytes)}\n`);
      next = dirtyBytes * 0.9;
    },
    update: (dirtyBytes) => {
      if (dirtyBytes > next) return;
      program.err(`writing back: ${formatBytes(dirtyBytes)} left\n`);
      next = dirtyBytes * 0.9;
    },
    end: () => {},
  };
}
