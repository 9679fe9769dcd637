/** `check`, `dump`, `writeback` and `extract` as the command line runs them, on kernel images. */
import { afterAll, beforeAll, describe, test } from "bun:test";
import { assert, assertEquals, assertMatch } from "@std/assert";
import {
  copyFileSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { setImmediate } from "node:timers";
import { makeRequest } from "../../../api/cli/make.ts";
import { makeDevices } from "../../../api/cli/make_devices.ts";
import { main } from "../../../api/cli/main.ts";
import { openFileDevice } from "../../../lib/device/file.ts";
import { openLibc } from "../../../lib/runtime/libc.ts";
import { plantChildren } from "../../offline/world.ts";
import { hashOfFile, type UnpackedFixture, unpackFixture } from "../../support/fixtures.ts";

const LIMIT_MS = 60_000;

let folder = "";
const unpacked: UnpackedFixture[] = [];
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "bcache-fuse-offline-"));
});
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
  for (const fixture of unpacked) fixture.remove();
});

function fixture(name: string): UnpackedFixture {
  const found = unpackFixture(name);
  unpacked.push(found);
  return found;
}

interface Ran {
  status: number;
  out: string;
  err: string;
}

async function run(...words: string[]): Promise<Ran> {
  let out = "";
  let err = "";
  const nothing = () => Promise.reject(new Error("not in this test"));
  const status = await main(words, {
    version: "1.2.3",
    path: "",
    parts: { mount: nothing, make: nothing },
    environment: { uid: 0, xdgRuntimeDirectory: folder },
    isTerminal: false,
    isDaemon: false,
    flushed: () => Promise.resolve(),
    out: (text) => void (out += text),
    err: (text) => void (err += text),
  });
  return { status, out, err };
}

/** Refused with one line on standard error and nothing on standard output. */
async function refused(status: number, line: RegExp, ...words: string[]): Promise<void> {
  const ran = await run(...words);
  assertMatch(ran.err, /^bcache-fuse: [^\n]+\n$/);
  assertMatch(ran.err, line);
  assertEquals([ran.status, ran.out], [status, ""]);
}

/** Opens a file as a mount would, until the end of `body`. */
async function whileInUse(path: string, body: () => Promise<void>): Promise<void> {
  const device = await openFileDevice(path, { host: await openLibc() });
  try {
    await body();
  } finally {
    await device.close();
  }
}

/** Runs a command, and sends this process SIGINT as soon as somebody listens for it. */
async function interrupted(...words: string[]): Promise<Ran> {
  const before = process.listenerCount("SIGINT");
  const running = run(...words);
  let isOver = false;
  void running.finally(() => isOver = true);
  while (!isOver && process.listenerCount("SIGINT") === before) {
    await new Promise((resolve) => setImmediate(resolve));
  }
  if (!isOver) process.emit("SIGINT");
  return await running;
}

describe("check", () => {
  test("prints what is in a sound set, exit status 0, and changes nothing", async () => {
    const { pathOf } = fixture("two-backings");
    const words = ["check", "-C", pathOf("cache.img"), "-B", pathOf("backing1.img")];
    const before = hashOfFile(pathOf("cache.img"));
    const { status, out, err } = await run(...words);
    assertEquals([status, err], [0, ""]);
    assertMatch(out, /cache\.img: set bcac4e00-\S+: clean\n/);
    assertMatch(out, /0: cached device 82d89b46-\S+ "data-one": 4\.0 MiB cached, 4\.0 MiB dirty\n/);
    assertMatch(out, /backing1\.img: device 0 of this cache, dirty\n/);
    const fresh = join(folder, "fresh.img");
    await makeDevices(makeRequest({ bdev: [fresh], size: "16M" }));
    const more = await run(...words, "-B", fresh);
    assertMatch(more.out, /fresh\.img: not a device of this cache, attached to no cache\n/);
    const json = JSON.parse((await run(...words, "--json")).out);
    assertEquals([json.clean, json.devices[0].dirtyBytes], [true, 4210688]);
    assertEquals(hashOfFile(pathOf("cache.img")), before);
  });

  test("says of a detached device that nothing is kept of it, and no UUID", async () => {
    const { pathOf } = fixture("none-and-detached");
    const { out } = await run("check", "-C", pathOf("cache.img"));
    assertMatch(out, /^ {2}\d: a device that was detached or forgotten: nothing is kept of it$/m);
    assertEquals(/invalidated|a03ef8ed/.test(out), false, out);
  });

  test("lists damage, exit status 4", async () => {
    const { pathOf } = fixture("damaged-btree-leaf");
    const { status, out, err } = await run("check", "--cache", pathOf("cache.img"));
    assertEquals(status, 4);
    assertMatch(out, /^error: \S+cache\.img: btree: bucket 575, sector 36800: .*; restore/);
    assertMatch(out, /: at least \S+ \S+ cached, at least \S+ \S+ dirty\n/);
    assertMatch(err, /^bcache-fuse: \S+cache\.img: 1 error found; see the report\n$/);
  });

  test("a backing file without superblock is damage as well", async () => {
    const { pathOf } = fixture("two-backings");
    const blank = join(folder, "blank");
    writeFileSync(blank, new Uint8Array(65536));
    const { status, out } = await run("check", "-C", pathOf("cache.img"), "-B", blank);
    assertEquals(status, 4);
    assertMatch(out, /^error: \S+blank: backing: sector 8: no bcache magic/);
  });

  test("cannot run: 1; cannot be understood: 2", async () => {
    const { pathOf } = fixture("two-backings");
    const cache = pathOf("cache.img");
    await refused(1, /no such file/, "check", "-C", join(folder, "none"));
    await refused(2, /no cache device was given/, "check");
    await refused(2, /is named twice/, "check", "-C", cache, "-B", cache);
    const backing = pathOf("backing1.img");
    await refused(1, /this is a backing device.*--backing/, "check", "-C", backing);
    const advice = /this is a backing device.*no extents: name the cache device.*show \S+\.img$/m;
    await refused(1, advice, "dump", backing, "extents");
    await whileInUse(cache, () => refused(1, /open in this process/, "check", "-C", cache));
  });
});

describe("dump", () => {
  test("prints an item a line, as JSON too", async () => {
    const { pathOf } = fixture("multilevel-powercut");
    const text = await run("dump", pathOf("cache.img"), "extents");
    assertMatch(text.out, /^0:16 len 8 -> \[0:20648 gen 1\] dirty\n/);
    const json = await run("dump", pathOf("cache.img"), "extents", "--json");
    const lines = json.out.trimEnd().split("\n");
    assertEquals(lines.length, text.out.trimEnd().split("\n").length);
    assertEquals(JSON.parse(lines[0]!).pointer, { device: 0, sector: 20648, gen: 1 });
  });

  test("says what cannot be read and goes on, exit status 4", async () => {
    const { pathOf } = fixture("damaged-btree-root");
    const { status, out, err } = await run("dump", pathOf("cache.img"), "btree");
    assertEquals(status, 4);
    assertMatch(out, /^unreadable: .*bucket 19\b/);
    assertMatch(err, /^bcache-fuse: .*: 1 place could not be read; see "unreadable" above\n$/);
  });

  test("counts what it does not tell one by one, too", async () => {
    const path = fixture("multilevel-powercut").pathOf("cache.img");
    const cache = await openFileDevice(path);
    await plantChildren(cache, 1300);
    await cache.close();
    const { out, err } = await run("dump", path, "btree");
    assertMatch(out, /\nunreadable: \.\.\. and 301 more\n$/);
    assertMatch(err, /: 1301 places could not be read; see "unreadable" above\n$/);
  });

  test("looks at a device that is in use, and knows its structures", async () => {
    const { pathOf } = fixture("two-backings");
    await whileInUse(pathOf("cache.img"), async () => {
      assertEquals((await run("dump", pathOf("cache.img"), "uuids")).status, 0);
    });
    await refused(2, /superblock, journal, uuids/, "dump", pathOf("cache.img"), "inodes");
  });
});

describe("writeback", () => {
  test("drains every device that was named, and leaves it clean", async () => {
    const { pathOf, entry } = fixture("two-backings");
    const backings = ["-B", pathOf("backing1.img"), "-B", pathOf("backing2.img")];
    const words = ["writeback", "-C", pathOf("cache.img"), ...backings, "--json"];
    const { status, out } = await run(...words);
    assertEquals(status, 0);
    const [first, second] = JSON.parse(out).devices;
    assertEquals([first.writtenBackBytes, first.state], [4210688, "clean"]);
    assertEquals([second.writtenBackBytes, second.state], [0, "clean"]);
    const data = hashOfFile(pathOf("backing1.img"), 16 * 512);
    assertEquals(data, entry.kernel.devices["backing1.img"]!.sha256);
    const check = await run("check", "-C", pathOf("cache.img"), ...backings, "--json");
    assertEquals(check.status, 0, check.out);
    assertEquals(JSON.parse(check.out).devices[0].dirtyBytes, 0);
  }, LIMIT_MS);

  test("stops in good order when it is interrupted: the rest stays dirty", async () => {
    const { pathOf } = fixture("multilevel-powercut");
    const devices = ["-C", pathOf("cache.img"), "-B", pathOf("backing1.img")];
    const { status, err } = await interrupted("writeback", ...devices);
    // It may have been done already.
    if (status !== 0) {
      assertEquals(status, 1);
      assertMatch(err, /interrupted: what is left stays dirty in the cache; run it again\n$/);
    }
    const check = await run("check", ...devices);
    assertEquals([check.status, check.err], [0, ""], check.out);
    assertEquals((await run("writeback", ...devices)).status, 0);
  }, LIMIT_MS);

  test("says once why a damaged set is refused, without counts that cannot be", async () => {
    const { pathOf } = fixture("damaged-btree-leaf");
    const words = ["writeback", "-C", pathOf("cache.img"), "-B", pathOf("backing1.img")];
    await refused(1, /bucket 575, block 0, 2886 keys: bad checksum/, ...words);
    const cache = await openFileDevice(pathOf("cache.img"), {});
    const node = new Uint8Array(512);
    await cache.read(36800, node);
    node.fill(0x51, 24, 32); // The version and the number of keys.
    await cache.write(36800, node);
    await cache.close();
    await refused(1, /bucket 575, block 0: unsupported bset version/, ...words);
  }, LIMIT_MS);

  test("refuses devices in use, and such that are not attached", async () => {
    const { pathOf } = fixture("none-and-detached");
    const words = ["writeback", "-C", pathOf("cache.img"), "-B"];
    const before = hashOfFile(pathOf("backing2.img"));
    await refused(1, /is not attached to cache set bcac4e00-/, ...words, pathOf("backing2.img"));
    await refused(1, /give it with --cache/, ...words, fixture("smallest").pathOf("cache.img"));
    await whileInUse(
      pathOf("backing1.img"),
      () => refused(1, /backing1\.img is open in this process/, ...words, pathOf("backing1.img")),
    );
    await refused(2, /no backing device was given/, "writeback", "-C", pathOf("cache.img"));
    assertEquals(hashOfFile(pathOf("backing2.img")), before);
  }, LIMIT_MS);
});

describe("extract", () => {
  test("writes the merged image, sparse, and never over a file that is there", async () => {
    const { pathOf, entry } = fixture("multilevel-powercut");
    const image = join(folder, "image");
    const from = ["extract", "-C", pathOf("cache.img"), "-B", pathOf("backing1.img")];
    const { status, out } = await run(...from, "-o", image);
    assertEquals(status, 0);
    assertMatch(out, /image: 128\.0 MiB, 17\.9 MiB of it from the cache/);
    assertEquals(hashOfFile(image), entry.kernel.devices["backing1.img"]!.sha256);
    assert(statSync(image).blocks * 512 < 32 << 20, "the image has holes");

    writeFileSync(image, "mine");
    await refused(1, /image exists already; .*--force/, ...from, "-o", image);
    symlinkSync("circle", join(folder, "circle"));
    const circle = ["-o", join(folder, "circle"), "--force"];
    await refused(1, /circle cannot be looked at: .*remove the link/, ...from, ...circle);
    const itself = pathOf("cache.img");
    const read = /cache\.img is the cache device itself, which is only read; name another file/;
    await refused(1, read, ...from, "-o", itself, "--force");
    const nowhere = join(folder, "nodir", "x.img");
    await refused(1, /there is no folder \S+nodir; make it with mkdir/, ...from, "-o", nowhere);
    await refused(1, /not a regular file/, ...from, "-o", folder, "--force");
    assertEquals(statSync(image).size, 4);
    assertEquals((await run(...from, "-o", image, "--force")).status, 0);
    assertEquals(hashOfFile(image), entry.kernel.devices["backing1.img"]!.sha256);
  }, LIMIT_MS);

  test("removes what killed ones left behind, and nothing else", async () => {
    const { pathOf } = fixture("flash-only");
    const image = join(folder, "left");
    // Above any PID there is; of a process that lives; of something else.
    const [dead, alive, other] = ["4194305", "1", "1x"].map((suffix) => `${image}.part-${suffix}`);
    for (const path of [dead!, alive!, other!]) writeFileSync(path, "part");
    const words = ["extract", "-C", pathOf("cache.img"), "--volume", "1", "-o", image];
    assertEquals((await run(...words)).status, 0);
    assertEquals([dead!, alive!, other!].map((path) => existsSync(path)), [false, true, true]);
    for (const path of [alive!, other!]) rmSync(path);
  });

  test("takes a flash-only volume by number, UUID or name", async () => {
    const { pathOf, entry } = fixture("flash-only");
    const from = ["extract", "-C", pathOf("cache.img")];
    // It has one cached device, which is bcache0 when it is there.
    for (const volume of ["1", "187014e1-64f1-8219-a254-197ae4ddb7d0", "bcache1"]) {
      const image = join(folder, `volume-${volume}`);
      assertEquals((await run(...from, "--volume", volume, "-o", image)).status, 0);
      assertEquals(hashOfFile(image), entry.kernel.devices["volume1"]!.sha256);
    }
    const output = ["-o", join(folder, "none")];
    await refused(
      1,
      /no flash-only volume number 0; .*1 \(1870/,
      ...from,
      "--volume",
      "0",
      ...output,
    );
    const others = ["extract", "-C", pathOf("cache.img"), ...output, "--volume"];
    await refused(1, /no flash-only volume "x"; .*\(1870.*, bcache1/, ...others, "x");
    await refused(1, /no flash-only volume "bcache0"; there are: 1 /, ...others, "bcache0");
    await refused(2, /--volume "": expected/, ...others, "");
    await refused(2, /name one source/, ...from, ...output);
    await refused(2, /add -o IMAGE/, ...from, "--volume", "1");
  });

  test(
    "refuses a damaged set and leaves nothing; a rescue lists doubts, exit status 4",
    async () => {
      const { pathOf } = fixture("damaged-btree-append");
      const image = join(folder, "rescued");
      const from = [
        "extract",
        "-C",
        pathOf("cache.img"),
        "-B",
        pathOf("backing1.img"),
        "-o",
        image,
      ];
      await refused(1, /bucket 437, .*--rescue/, ...from);
      assert(!existsSync(image));
      const { status, out, err } = await run(...from, "--rescue");
      assertEquals(status, 4);
      assertMatch(out, /^error: .*bucket 437/);
      assertMatch(out, /in doubt: bytes 0-28733439: a b-tree node is damaged/);
      assertMatch(err, /^bcache-fuse: .*rescued from a damaged set: 1 range of it in doubt/);
      assert(existsSync(image));
      assert(readdirSync(folder).every((name) => !name.includes(".part-")));
    },
    LIMIT_MS,
  );

  test("rescues a volume of a cache without superblock, or without its end", async () => {
    const { pathOf, entry } = fixture("flash-only");
    const cache = pathOf("cache.img");
    const image = join(folder, "volume");
    const words = ["extract", "-C", cache, "--volume", "1", "-o", image];
    const { sha256 } = entry.kernel.devices["volume1"]!;
    truncateSync(cache, statSync(cache).size - 65536);
    await refused(1, /was cut short: .*; `check` lists all; --rescue/, ...words);
    const cut = await run(...words, "--rescue");
    assertMatch(cut.err, /rescued from a damaged set: no range of it is in doubt\n$/);
    assertEquals([cut.status, hashOfFile(image)], [4, sha256]);
    truncateSync(cache, statSync(cache).size + 65536);
    const device = await openFileDevice(cache, {});
    await device.write(0, new Uint8Array(8192));
    await device.close();
    await refused(1, /no bcache magic at byte 4120/, ...words, "--force");
    const lost = await run(...words, "--force", "--rescue");
    assertEquals([lost.status, hashOfFile(image)], [4, sha256]);
  }, LIMIT_MS);

  test("leaves nothing when it is interrupted", async () => {
    const { pathOf } = fixture("multilevel-powercut");
    const image = join(folder, "interrupted");
    const from = ["-C", pathOf("cache.img"), "-B", pathOf("backing1.img"), "-o", image];
    const { status, err } = await interrupted("extract", ...from);
    assertEquals([status, err], [1, "bcache-fuse: interrupted; nothing was kept\n"]);
    assert(readdirSync(folder).every((name) => !name.startsWith("interrupted")));
  }, LIMIT_MS);

  test("joins a plain image with its sidecar", async () => {
    const { pathOf, entry } = fixture("dirty-clean-shutdown");
    // A backing device whose data begins at sector 16 is a sidecar and the image behind it.
    const image = join(folder, "plain");
    const whole = pathOf("backing1.img");
    copyFileSync(whole, `${image}.bcache`);
    truncateSync(`${image}.bcache`, 16 * 512);
    const file = await openFileDevice(whole, { readOnly: true });
    const bytes = new Uint8Array((file.sizeSectors - 16) * 512);
    await file.read(16, bytes);
    await file.close();
    writeFileSync(image, bytes);
    const output = join(folder, "merged");
    const words = ["-C", pathOf("cache.img"), "-B", image];
    assertEquals((await run("extract", ...words, "-o", output)).status, 0);
    assertEquals(hashOfFile(output), entry.kernel.devices["backing1.img"]!.sha256);
    assertEquals((await run("check", ...words)).status, 0);
  }, LIMIT_MS);
});
