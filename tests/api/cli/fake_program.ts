/**
 * The command line over a fake engine, run as a process of its own by main_test.ts. The "mount" is
 * a promise that ends when asked to; what it does is chosen by environment variables:
 *   FAKE_LOG   a file that gets one line per call
 *   FAKE_FAIL  the mount is refused with this message
 *   FAKE_BUSY  unmounting is refused this many times
 *   FAKE_LEFT  so many bytes are dirty at the end
 */
import { appendFileSync } from "node:fs";
import process from "node:process";
import type { Parts } from "../../../api/cli/program.ts";
import { runProgram } from "../../../api/cli/real_program.ts";
import type {
  MountConfig,
  MountEnd,
  MountHandle,
  MountListeners,
} from "../../../fuse/mount_handle.ts";
import { BcacheError } from "../../../lib/base/errors.ts";
import { FakeControl } from "../fake_control.ts";

function record(line: string): void {
  const path = process.env["FAKE_LOG"];
  if (path) appendFileSync(path, `${line}\n`);
}

function mount(config: MountConfig, { log }: MountListeners): Promise<MountHandle> {
  record(`mount ${JSON.stringify(config)}`);
  const failure = process.env["FAKE_FAIL"];
  if (failure) return Promise.reject(new BcacheError("BadFormat", failure));
  log?.("info", "replayed the journal");
  let busy = Number(process.env["FAKE_BUSY"] ?? 0);
  let end = (_: MountEnd): void => {};
  const ended = new Promise<MountEnd>((resolve) => end = resolve);
  const dirtyBytes = Number(process.env["FAKE_LEFT"] ?? 0);
  const keepAlive = setInterval(() => {}, 1000);
  return Promise.resolve({
    control: new FakeControl(config.backingPaths.length),
    volumes: config.backingPaths.map((_, at) => ({ name: `bcache${at}`, sizeBytes: 1024 ** 3 })),
    ended,
    unmount: ({ force } = {}) => {
      record(`unmount ${force ? "force" : "plain"}`);
      if (!force && busy-- > 0) return Promise.reject(new BcacheError("Busy", "in use"));
      clearInterval(keepAlive);
      end({ reason: "unmounted", remains: { dirtyBytes, detachesBrokenOff: [] } });
      return Promise.resolve();
    },
  });
}

const parts: Parts = {
  mount,
  make: (request) => {
    record(`make ${JSON.stringify(request)}`);
    return Promise.resolve("made\n");
  },
};

await runProgram(import.meta.url, parts);
