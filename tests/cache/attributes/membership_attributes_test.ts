/** Attributes by which devices come and go, and changes of membership that race each other. */
import { describe, test } from "bun:test";
import { assert, assertEquals, assertRejects } from "@std/assert";
import { BcacheError } from "../../../lib/base/errors.ts";
import type { CacheSet } from "../../../lib/cache/cache_set.ts";
import { uuidEntryLabel } from "../../../lib/ondisk/uuid_entry.ts";
import { decodeLabel } from "../../../lib/ondisk/label.ts";
import { RealClock } from "../../../lib/runtime/clock.ts";
import { SimRandom } from "../../simulation/sim_random.ts";
import { makeSet, superblockOf, valuesIn, volumeNamed, write } from "../set_support.ts";

const valueOf = async (set: CacheSet, device: string | undefined, name: string) =>
  (await set.attributes(device, name))[0]!.value;

describe("attributes of membership", () => {
  test("detach and stop do what the commands do; running is 1 and takes nothing else", async () => {
    const made = await makeSet(2);
    const set = await made.open();
    await write(volumeNamed(set, "bcache0"), 0, 4096, 1);
    assertEquals(await valueOf(set, "bcache0", "running"), "1");
    assertEquals((await set.attributes("bcache0", "running"))[0]!.range, "1");
    await set.setAttribute("bcache0", "running", "1");
    await assertRejects(() => set.setAttribute("bcache0", "running", "0"), BcacheError, "to stop");
    await set.setAttribute("bcache0", "detach", "1");
    assertEquals(await valueOf(set, "bcache0", "state"), "no cache");
    await set.setAttribute("bcache0", "label", "alone");
    assertEquals((await set.uuids()).map(({ label }) => label), [""]);
    await set.setAttribute("bcache1", "stop", "1");
    assertEquals(set.volumes.map(({ name }) => name), ["bcache0"]);
    await set.close();
  });

  test("a label is cut at its newline and goes to the superblock and the UUID table", async () => {
    const made = await makeSet(1);
    const set = await made.open();
    await set.setAttribute("bcache0", "label", "photos\n");
    assertEquals((await set.uuids())[0]!.label, "photos");
    const superblock = await superblockOf(made.backings[0]!.device);
    assertEquals(decodeLabel(superblock.label), "photos");
    assertEquals(uuidEntryLabel({ label: superblock.label } as never), "photos");
    await assertRejects(
      () => set.setAttribute("bcache0", "label", "x".repeat(33)),
      BcacheError,
    );
    await set.close();
  });

  test("unregister detaches every device and stops the volumes, which come back", async () => {
    const made = await makeSet(2);
    let set = await made.open();
    await set.createVolume({ sizeBytes: 65536 });
    for (const name of ["bcache0", "bcache1", "bcache2"]) {
      await write(volumeNamed(set, name), 0, 4096, 7);
    }
    await set.setAttribute(undefined, "unregister", "1");
    const { devices, volumes } = await set.status();
    assertEquals(devices.map(({ state, attached }) => [state, attached]), [
      ["no cache", false],
      ["no cache", false],
    ]);
    assertEquals(volumes, []);
    for (const { device } of made.backings) {
      const bytes = new Uint8Array(4096);
      await device.read(16, bytes);
      assertEquals([...new Set(bytes)], [7]);
    }
    await set.close();
    set = await made.open({ backings: [] });
    assertEquals(await valuesIn(volumeNamed(set, "bcache0"), 0, 4096), [7]);
    await set.close();
  });

  test("stop of the set ends serving all; dirty data stays in the cache", async () => {
    const made = await makeSet(1);
    let set = await made.open();
    await write(volumeNamed(set, "bcache0"), 0, 4096, 7);
    await set.setAttribute(undefined, "stop", "1");
    assertEquals([set.volumes.length, made.released], [0, ["/disk0"]]);
    assertEquals((await set.uuids())[0]!.dirtyBytes, 4096);
    await set.close();
    set = await made.open();
    assertEquals(await valuesIn(volumeNamed(set, "bcache0"), 0, 4096), [7]);
    await set.close();
  });

  test("synchronous reads 1; what would throw the cache away is refused", async () => {
    const made = await makeSet(0);
    const set = await made.open();
    assertEquals(await valueOf(set, undefined, "synchronous"), "1");
    assertEquals((await set.attributes(undefined, "synchronous"))[0]!.range, "1");
    await set.setAttribute(undefined, "synchronous", "1");
    await assertRejects(
      () => set.setAttribute(undefined, "synchronous", "0"),
      BcacheError,
      "would throw away what is cached",
    );
    await set.close();
  });

  test("nothing is set while the set is stopped", async () => {
    const made = await makeSet(1);
    const set = await made.open();
    await set.close();
    await assertRejects(
      () => set.setAttribute("bcache0", "label", "x"),
      BcacheError,
      "is being stopped",
    );
  });
});

/** Counts what sleeps. */
class CountingClock extends RealClock {
  sleeping = 0;

  override async sleep(delayMs: number, signal?: AbortSignal): Promise<void> {
    this.sleeping++;
    try {
      await super.sleep(delayMs, signal);
    } finally {
      this.sleeping--;
    }
  }
}

describe("changes that race", () => {
  test("nothing sleeps for a device any more once it was stopped or detached", async () => {
    const made = await makeSet(2);
    const clock = new CountingClock();
    const set = await made.open({ backings: [], clock });
    const turn = () => new Promise((resolve) => setTimeout(resolve, 5));
    await turn();
    const before = clock.sleeping;
    await set.attach("/disk0");
    await set.attach("/disk1");
    await turn();
    assert(clock.sleeping > before, "a device has its rate timer");
    await set.detach("bcache0");
    await set.stop("bcache1");
    await turn();
    assertEquals(clock.sleeping, before);
    await set.close();
    assertEquals(clock.sleeping, 0);
  });

  test("attach, detach, stop, volumes and the end of the set, all at once", async () => {
    for (let seed = 1; seed <= 12; seed++) {
      const made = await makeSet(3);
      const random = new SimRandom(seed);
      const set = await made.open();
      const actions: Array<() => Promise<unknown>> = [
        ...[0, 1, 2].flatMap((at) => [
          () => set.detach(`bcache${at}`),
          () => set.stop(`bcache${at}`),
          () => set.attach(`/disk${at}`),
          () => set.flushDirty(`bcache${at}`),
        ]),
        () => set.createVolume({ sizeBytes: 65536 }),
        () => set.destroyVolume("bcache3", { force: true }),
        () => set.setAttribute(undefined, "unregister", "1"),
        () => set.uuids(),
      ];
      await write(volumeNamed(set, "bcache0"), 0, 65536, seed);
      const running = Promise.allSettled(Array.from({ length: 30 }, async () => {
        await new Promise((resolve) => setTimeout(resolve, random.below(12)));
        await random.pick(actions)();
      }));
      if (seed % 3 === 0) {
        await new Promise((resolve) => setTimeout(resolve, 4));
        await set.close();
      }
      for (const result of await running) {
        if (result.status === "rejected") assert(result.reason instanceof BcacheError);
      }
      if (seed % 3 !== 0) await set.close();
      // Whatever came of it: the data is there, in the cache or written back.
      const again = await made.open();
      const { devices } = await again.status();
      const first = devices.find(({ backingPath }) => backingPath === "/disk0")!;
      assertEquals(await valuesIn(volumeNamed(again, first.name), 0, 65536), [seed]);
      await again.close();
    }
  });
});
