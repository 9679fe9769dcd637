/** An image that is edited behind its sidecar, on real files. */
import { afterEach, beforeEach, describe, test } from "bun:test";
import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import {
  mkdtempSync,
  readFileSync,
  rmSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { closeSync, openSync, statSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { BcacheError } from "../../../lib/base/errors.ts";
import { CacheSet } from "../../../lib/cache/cache_set.ts";
import { makeCache, prepareSidecar, writePrepared } from "../../../lib/cache/make.ts";
import { openBacking } from "../../../lib/cache/members/open_backing.ts";
import type { WhenChanged } from "../../../lib/cache/members/sidecar.ts";
import type { CacheMode } from "../../../lib/cache/ports.ts";
import type { Device } from "../../../lib/device/device.ts";
import { openFileDevice } from "../../../lib/device/file.ts";
import { RealClock } from "../../../lib/runtime/clock.ts";
import { openLibc } from "../../../lib/runtime/libc.ts";
import { SimRandom } from "../../simulation/sim_random.ts";
import { uuidOf, valuesIn, write } from "../set_support.ts";

const AT = 8192;
let folder = "";
let image = "";
let cachePath = "";
let log: string[] = [];

beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), "bcache-fuse-changed-"));
  [image, cachePath] = [join(folder, "disk.img"), join(folder, "cache.img")];
  log = [];
  writeFileSync(image, new Uint8Array(1 << 20).fill(1));
  writeFileSync(`${image}.bcache`, new Uint8Array(8192));
  writeFileSync(cachePath, new Uint8Array(700 * 8192));
  const common = { setUuid: uuidOf(9), blockSectors: 1, bucketSectors: 16 };
  await withFiles([cachePath, image, `${image}.bcache`], async ([cache, disk, sidecar]) => {
    await makeCache(cache!, { ...common, uuid: uuidOf(1) });
    const options = { ...common, uuid: uuidOf(2), cacheMode: "writethrough" as const };
    await writePrepared([await prepareSidecar(sidecar!, disk!, options)]);
  });
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

async function withFiles(paths: string[], body: (files: Device[]) => Promise<void>): Promise<void> {
  const files: Device[] = [];
  for (const path of paths) files.push(await openFileDevice(path, { host: await openLibc() }));
  await body(files);
  for (const file of files) await file.close();
}

interface Session {
  readonly mode?: CacheMode;
  readonly whenChanged?: WhenChanged;
  readonly readOnly?: boolean;
  /** Ends as a crash does. */
  readonly crash?: boolean;
}

/** From mount to unmount, without FUSE. */
async function session(how: Session, body: (set: CacheSet) => Promise<void>): Promise<void> {
  const { readOnly = false, mode, whenChanged } = how;
  const host = await openLibc();
  const open = (path: string) => openFileDevice(path, { readOnly, exclusive: true, host });
  const cache = await open(cachePath);
  const opened: Device[] = [cache];
  try {
    const device = await openBacking(image, open, whenChanged);
    opened.push(device);
    const set = await CacheSet.open({
      ...{ cache, clock: new RealClock(), random: new SimRandom(1), readOnly },
      backings: [{ path: image, device, dropCached: device.dropCached ?? false }],
      log: (_level, message) => void log.push(message),
      ...(mode === undefined ? {} : { cacheMode: mode }),
      ...(readOnly ? {} : {
        settings: [["sequential_cutoff", "0"], ["writeback_running", "0"]] as const,
      }),
    });
    try {
      await body(set);
    } finally {
      if (how.crash) await set.abandon();
      else await set.close();
    }
    if (how.crash) opened.pop(); // Nothing is told of it any more; the lock goes with the file.
    if (how.crash) await closeRaw(device);
  } finally {
    for (const device of opened) await device.close();
  }
}

/** Lets go of the files as the end of the process does: nothing is written. */
async function closeRaw(device: Device): Promise<void> {
  const before = readFileSync(`${image}.bcache`);
  await device.close();
  writeFileSync(`${image}.bcache`, before);
}

async function cachedValue(set: CacheSet): Promise<number[]> {
  return await valuesIn(set.volumes[0]!, AT, 4096);
}

/** Somebody writes to the image. */
function edit(): void {
  const fd = openSync(image, "r+");
  writeSync(fd, new Uint8Array(4096).fill(66), 0, 4096, AT);
  closeSync(fd);
}

function stampIsThere(): boolean {
  return readFileSync(`${image}.bcache`).subarray(0, 512).some((byte) => byte !== 0);
}

async function refusal(how: Session = {}): Promise<string> {
  const error = await assertRejects(() => session(how, async () => {}), BcacheError);
  assert(!error.message.includes("\n"));
  return error.message;
}

describe("an image behind its sidecar", () => {
  test("is never said to be formatted inside, whatever is refused", async () => {
    await session({ mode: "writeback" }, (set) => write(set.volumes[0]!, AT, 4096, 5));
    await withFiles([cachePath], async ([cache]) => {
      const common = { blockSectors: 1, bucketSectors: 16, force: true };
      await makeCache(cache!, { ...common, uuid: uuidOf(1), setUuid: uuidOf(8) });
    });
    assertMatch(await refusal(), /begin anew with bcache-fuse make -B \S+ --sidecar --force$/);
  });

  test("that nobody changed is served from the cache, session after session", async () => {
    assert(!stampIsThere());
    await session({}, async (set) => {
      assert(!stampIsThere(), "cleared while it is in use");
      await write(set.volumes[0]!, AT, 4096, 5);
      assert(!stampIsThere());
    });
    for (let round = 0; round < 2; round++) {
      assert(stampIsThere());
      await session({}, async (set) => assertEquals(await cachedValue(set), [5]));
    }
    await session({ readOnly: true }, async (set) => assertEquals(await cachedValue(set), [5]));
    assert(stampIsThere(), "a session that only reads leaves it");
  });

  test("is refused when it was changed, and nothing is touched", async () => {
    await session({}, (set) => write(set.volumes[0]!, AT, 4096, 5));
    edit();
    const before = [readFileSync(cachePath), readFileSync(`${image}.bcache`)];
    for (const how of [{}, { readOnly: true }]) {
      const line = await refusal(how);
      assertMatch(
        line,
        /disk\.img: was changed .*: found modification time \d{4}-\S+T\S+\.\d{9}Z, expected \d{4}-/,
      );
      assertMatch(line, /--changed-image drop.*--changed-image trust/);
    }
    assertEquals([readFileSync(cachePath), readFileSync(`${image}.bcache`)], before);
    assertEquals(readFileSync(image)[AT], 66);
  });

  test("is refused when it became longer, though its time was put back", async () => {
    await session({}, (set) => write(set.volumes[0]!, AT, 4096, 5));
    const { atime, mtime } = statSync(image);
    truncateSync(image, 1 << 21);
    utimesSync(image, atime, mtime);
    assertMatch(await refusal(), /found 2097152 bytes, expected the 1048576 it was left with/);
  });

  test("with drop: what was cached is forgotten, and it is served as it is", async () => {
    await session({}, async (set) => {
      await write(set.volumes[0]!, AT, 4096, 5);
      assertEquals(await cachedValue(set), [5]);
    });
    edit();
    await session({ whenChanged: "drop", readOnly: true }, async (set) => {
      assertEquals(await cachedValue(set), [66]);
    });
    await session({ whenChanged: "drop" }, async (set) => {
      assertEquals(await cachedValue(set), [66]);
    });
    const [dropped] = log.filter((line) => line.includes("was changed without its cache"));
    assertEquals(
      dropped,
      `${image}: was changed without its cache; what was cached of it is dropped: 4.0 KiB`,
    );
    await session({}, async (set) => assertEquals(await cachedValue(set), [66]));
  });

  test("with drop: a crash does not bring it back", async () => {
    await session({}, (set) => write(set.volumes[0]!, AT, 4096, 5));
    edit();
    await session({ whenChanged: "drop", crash: true }, () => Promise.resolve());
    assert(!stampIsThere());
    await session({}, async (set) => assertEquals(await cachedValue(set), [66]));
  });

  test("with drop: refused while there is dirty data, which trust keeps", async () => {
    await session({ mode: "writeback" }, (set) => write(set.volumes[0]!, AT, 4096, 5));
    edit();
    const line = await refusal({ whenChanged: "drop" });
    assertMatch(
      line,
      /has 4\.0 KiB of it that are dirty; to keep both.*trust and flush.*--sidecar --force/,
    );
    assert(stampIsThere());
    assertMatch(
      await refusal(),
      /was changed without its cache: .*; the cache has newer data of it, too: to keep both.*trust/,
    );
    await session({ whenChanged: "trust" }, async (set) => {
      assertEquals(await cachedValue(set), [5]);
      await set.flushDirty(undefined);
    });
    assertEquals(readFileSync(image)[AT], 5);
    await session({}, async (set) => assertEquals(await cachedValue(set), [5]));
  });

  test("with trust: it is served as it is cached, and refused no more", async () => {
    await session({}, (set) => write(set.volumes[0]!, AT, 4096, 5));
    edit();
    await session({ whenChanged: "trust" }, async (set) => {
      assertEquals(await cachedValue(set), [5]);
    });
    await session({}, () => Promise.resolve());
  });

  test("without a stamp, after a crash, is taken as it is", async () => {
    const lastWrite = (set: CacheSet) => write(set.volumes[0]!, AT, 4096, 5);
    await session({}, lastWrite);
    await session({ crash: true }, async (set) => {
      await write(set.volumes[0]!, AT, 4096, 6);
      await set.volumes[0]!.flush();
    });
    assert(!stampIsThere());
    await session({}, async (set) => assertEquals(await cachedValue(set), [6]));
  });

  test("may change as it likes while it is detached", async () => {
    await session({}, async (set) => {
      await write(set.volumes[0]!, AT, 4096, 5);
      await set.detach("bcache0");
    });
    edit();
    await session({}, async (set) => assertEquals(await cachedValue(set), [66]));
  });
});
