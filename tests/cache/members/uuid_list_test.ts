/** Whose data the cache has, and forgetting it. */
import { describe, test } from "bun:test";
import { assertEquals, assertRejects } from "@std/assert";
import { BcacheError } from "../../../lib/base/errors.ts";
import { backingState, encodeSuperblock, setBackingState } from "../../../lib/ondisk/superblock.ts";
import { makeSet, superblockOf, uuidOf, valuesIn, volumeNamed, write } from "../set_support.ts";

const UUID0 = "20202020-2020-2020-2020-202020202020";
const UUID1 = "21212121-2121-2121-2121-212121212121";

describe("the list of UUIDs", () => {
  test("has every device that the cache knows, here or not, with what it has of it", async () => {
    const made = await makeSet(2);
    let set = await made.open();
    await write(volumeNamed(set, "bcache0"), 0, 8192, 1);
    await set.setAttribute("bcache1", "cache_mode", "writethrough");
    await write(volumeNamed(set, "bcache1"), 0, 4096, 2);
    await set.setAttribute("bcache1", "label", "second");
    await set.close();
    set = await made.open({ backings: [made.source(1)] });
    await set.createVolume({ sizeBytes: 65536, label: "own" });
    const list = await set.uuids();
    const seen = list.map(({ uuid, label, kind, device, dirtyBytes, cachedBytes }) => [
      uuid.slice(0, 4),
      label,
      kind,
      device,
      dirtyBytes,
      cachedBytes,
    ]);
    assertEquals(seen[0], ["2020", "", "cached", null, 8192, 8192]);
    assertEquals(seen[1], ["2121", "second", "cached", "bcache0", 0, 4096]);
    assertEquals(seen[2]!.slice(1), ["own", "volume", "bcache1", 0, 0]);
    for (const entry of list) {
      assertEquals(entry.firstRegisteredSeconds > 1e9, true);
      assertEquals(entry.lastRegisteredSeconds >= entry.firstRegisteredSeconds, true);
    }
    await set.close();
  });

  test("shows when a device was last attached, also after a restart", async () => {
    const made = await makeSet(1);
    const at = async (seconds: number): Promise<number[]> => {
      const { clock } = made.options([]);
      const late = Object.create(clock, { wallSeconds: { value: () => seconds } });
      const set = await made.open({ clock: late });
      const [entry] = await set.uuids();
      await set.close();
      return [entry!.firstRegisteredSeconds, entry!.lastRegisteredSeconds];
    };
    assertEquals(await at(1_600_000_000), [1_600_000_000, 1_600_000_000]);
    assertEquals(await at(1_600_000_777), [1_600_000_000, 1_600_000_777]);
    const set = await made.open({ backings: [] });
    assertEquals((await set.uuids())[0]!.lastRegisteredSeconds, 1_600_000_777);
    await set.close();
  });
});

describe("forgetting a device", () => {
  test("is refused while it is here, and while some of it is nowhere else", async () => {
    const made = await makeSet(1);
    let set = await made.open();
    await write(volumeNamed(set, "bcache0"), 0, 4096, 1);
    await assertRejects(() => set.forget(UUID0), BcacheError, "is here as bcache0; take it out");
    await set.stop("bcache0");
    await assertRejects(() => set.forget(UUID0), BcacheError, "4.0 KiB of it are nowhere else");
    await assertRejects(() => set.forget(UUID1), BcacheError, "knows no device 21212121");
    await assertRejects(() => set.forget("x"), BcacheError, "is not a UUID");
    await assertRejects(() => set.forget("0".repeat(32)), BcacheError, "knows no device");
    assertEquals((await set.uuids()).length, 1);
    await set.close();
    set = await made.open();
    assertEquals(await valuesIn(volumeNamed(set, "bcache0"), 0, 4096), [1]);
    await set.close();
  });

  test("by force takes it out of the table, also after a restart; the others stay", async () => {
    const made = await makeSet(2);
    let set = await made.open();
    await write(volumeNamed(set, "bcache0"), 0, 1024 * 1024, 1);
    await write(volumeNamed(set, "bcache1"), 0, 4096, 2);
    await set.stop("bcache0");
    await set.forget(UUID0.replaceAll("-", "").toUpperCase(), { force: true });
    assertEquals((await set.uuids()).map(({ uuid }) => uuid), [UUID1]);
    await set.close();
    set = await made.open({ backings: [made.source(1)] });
    assertEquals((await set.uuids()).map(({ uuid, dirtyBytes }) => [uuid, dirtyBytes]), [
      [UUID1, 4096],
    ]);
    assertEquals(await valuesIn(volumeNamed(set, "bcache0"), 0, 4096), [2]);
    // The device itself still says dirty: it is told that this cache does not know it.
    await assertRejects(() => set.attach("/disk0"), BcacheError, "this cache set does not know it");
    await set.close();
  });

  test("lets a device that was changed without its cache come back as a new one", async () => {
    const made = await makeSet(1);
    let set = await made.open();
    await write(volumeNamed(set, "bcache0"), 0, 4096, 1);
    await set.close();
    const { device } = made.backings[0]!;
    const superblock = await superblockOf(device);
    setBackingState(superblock, "stale");
    await device.write(8, encodeSuperblock(superblock));
    await device.write(16, new Uint8Array(4096).fill(8));
    set = await made.open({ backings: [] });
    await assertRejects(() => set.attach("/disk0"), BcacheError, "--force and attach it again");
    await set.forget(UUID0, { force: true });
    await set.attach("/disk0");
    assertEquals(await valuesIn(volumeNamed(set, "bcache0"), 0, 4096), [8]);
    assertEquals(backingState(await superblockOf(device)), "clean");
    assertEquals((await superblockOf(device)).setUuid, uuidOf(9));
    await set.close();
  });

  test("what a crash left of it is dropped at the next start", async () => {
    const made = await makeSet(1);
    let set = await made.open();
    await write(volumeNamed(set, "bcache0"), 0, 1024 * 1024, 1);
    await set.stop("bcache0");
    const { cache } = made;
    const copy = new Uint8Array(cache.sizeSectors * 512);
    let writes = 0;
    const whole = cache.write.bind(cache);
    cache.write = async (at, from, options) => {
      await whole(at, from, options);
      // The table, then the journal entry that names it: the entry is invalid, its keys are there.
      if (++writes === 2) await cache.read(0, copy);
    };
    await set.forget(UUID0, { force: true });
    cache.write = whole;
    await set.close();
    await cache.write(0, copy);
    set = await made.open({ backings: [] });
    assertEquals(await set.uuids(), []);
    let inUse = 100;
    for (let tries = 0; tries < 200 && inUse > 10; tries++) {
      await set.setAttribute(undefined, "trigger_gc", "1");
      await new Promise((resolve) => setTimeout(resolve, 10));
      inUse = (await set.status()).inUsePercent;
    }
    assertEquals(inUse <= 10, true, `${inUse} % in use`);
    await set.close();
  });
});
