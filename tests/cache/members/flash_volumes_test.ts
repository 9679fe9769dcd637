/** Volumes that live on the cache alone. */
import { describe, test } from "bun:test";
import { assert, assertEquals, assertRejects } from "@std/assert";
import { BcacheError } from "../../../lib/base/errors.ts";
import { MemoryDevice } from "../../../lib/device/memory.ts";
import { makeSet, valuesIn, volumeNamed, write } from "../set_support.ts";

const MIB = 1024 * 1024;

/** Hides the synchronous calls, so that every path is the one that waits. */
class WaitingDevice extends MemoryDevice {
  override readonly sync = undefined as unknown as MemoryDevice["sync"];
}

describe("a volume on the cache alone", () => {
  test("is named behind the cached devices, reads as zeroes, keeps what is written", async () => {
    const made = await makeSet(1);
    let set = await made.open();
    const status = await set.createVolume({ sizeBytes: MIB, label: "scratch" });
    assertEquals([status.name, status.label, status.sizeBytes, status.usedBytes], [
      "bcache1",
      "scratch",
      MIB,
      0,
    ]);
    assertEquals(made.changes, 1);
    let volume = volumeNamed(set, "bcache1");
    assertEquals(await valuesIn(volume, 0, MIB), [0]);
    await write(volume, 4096, 8192, 0x5a);
    await write(volume, 100, 50, 0x11); // Not in blocks.
    assertEquals(await valuesIn(volume, 4096, 8192), [0x5a]);
    assertEquals(await valuesIn(volume, 0, 4096), [0, 0x11]);
    await volume.flush();
    await write(volumeNamed(set, "bcache0"), 4096, 4096, 0x77);
    // Writing everything back does not concern it.
    await set.flushDirty(undefined);
    assertEquals((await set.status()).volumes[0]!.usedBytes, 8192 + 512);
    assertEquals(await valuesIn(volume, 4096, 8192), [0x5a]);
    await set.close();
    set = await made.open();
    volume = volumeNamed(set, "bcache1");
    assertEquals(await valuesIn(volume, 4096, 8192), [0x5a]);
    assertEquals((await set.status()).volumes[0]!.label, "scratch");
    await set.close();
  });

  test("gives space back where it is zeroed", async () => {
    const made = await makeSet(0);
    const set = await made.open();
    await set.createVolume({ sizeBytes: MIB });
    const volume = volumeNamed(set, "bcache0");
    await write(volume, 0, 65536, 1);
    await volume.zero(4096, 32768);
    assertEquals(await valuesIn(volume, 0, 4096), [1]);
    assertEquals(await valuesIn(volume, 4096, 32768), [0]);
    assertEquals((await set.status()).volumes[0]!.usedBytes, 32768);
    await set.close();
  });

  test("works on devices without synchronous calls", async () => {
    const made = await makeSet(0);
    const waiting = new WaitingDevice(made.cache.sizeSectors);
    const bytes = new Uint8Array(made.cache.sizeSectors * 512);
    await made.cache.read(0, bytes);
    await waiting.write(0, bytes);
    const set = await made.open({ cache: waiting });
    await set.createVolume({ sizeBytes: MIB });
    const volume = volumeNamed(set, "bcache0");
    await write(volume, 512, 100_000, 9);
    assertEquals(volume.tryRead(512, new Uint8Array(512)), false);
    assertEquals(await valuesIn(volume, 512, 99_840), [9]);
    assertEquals(await valuesIn(volume, 0, 512), [0]);
    await set.close();
  });

  test("says that the cache is full, and goes on when there is room", async () => {
    const made = await makeSet(0);
    const set = await made.open();
    await set.createVolume({ sizeBytes: 700 * 8192 });
    const volume = volumeNamed(set, "bcache0");
    const piece = new Uint8Array(65536).fill(3);
    let at = 0;
    const error = await assertRejects(async () => {
      for (; at < volume.sizeBytes; at += piece.length) await volume.write(at, piece);
    }, BcacheError);
    assertEquals([error.code, error.errno], ["NoSpace", 28]);
    assert(at > 2 * MIB, "most of the cache was used");
    await volume.zero(0, 1024 * 1024);
    // What was given up is found by a collection, which the write waits for.
    await volume.write(0, piece);
    assertEquals(await valuesIn(volume, 0, 131072), [3, 0]);
    await set.close();
  });

  test("grows with zeroes, also where it was longer once", async () => {
    const made = await makeSet(0);
    let set = await made.open();
    await set.createVolume({ sizeBytes: MIB });
    let volume = volumeNamed(set, "bcache0");
    await write(volume, 0, MIB, 7);
    const smaller = await set.resizeVolume("bcache0", 65536, { force: true });
    assertEquals([smaller.sizeBytes, smaller.usedBytes], [65536, 65536]);
    assertEquals(volume.sizeBytes, 65536);
    await assertRejects(() => volume.read(65536, new Uint8Array(512)), BcacheError, "outside");
    await set.setAttribute("bcache0", "size", "2M");
    assertEquals(await valuesIn(volume, 0, 65536), [7]);
    assertEquals(await valuesIn(volume, 65536, 2 * MIB - 65536), [0]);
    await set.close();
    set = await made.open();
    volume = volumeNamed(set, "bcache0");
    assertEquals(volume.sizeBytes, 2 * MIB);
    assertEquals(await valuesIn(volume, 65536, 2 * MIB - 65536), [0]);
    await set.close();
  });

  test("becomes smaller only by force where that cuts data off, saying how much", async () => {
    const made = await makeSet(0);
    const set = await made.open();
    await set.createVolume({ sizeBytes: MIB });
    const volume = volumeNamed(set, "bcache0");
    await write(volume, 0, 4096, 7);
    await write(volume, 65536 - 512, 1024, 8);
    await write(volume, MIB - 4096, 4096, 9);
    await volume.zero(MIB - 512, 512);
    const behind = "bcache0: holds 4.0 KiB behind the new end of 64.0 KiB";
    for (
      const cut of [
        () => set.resizeVolume("bcache0", 65536),
        () => set.setAttribute("bcache0", "size", "64k"),
      ]
    ) {
      const error = await assertRejects(cut, BcacheError, behind);
      assertEquals(error.code, "HoldsData");
    }
    assertEquals(volume.sizeBytes, MIB);
    assertEquals(await valuesIn(volume, MIB - 4096, 4096), [9, 0]);
    await set.resizeVolume("bcache0", 65536, { force: true });
    // Where nothing is, nothing is asked; and what was given up does not count.
    await set.resizeVolume("bcache0", MIB);
    await set.resizeVolume("bcache0", 65536);
    assertEquals((await set.status()).volumes[0]!.usedBytes, 4096 + 512);
    await set.close();
  });

  test("refuses sizes that cannot be, labels that are too long, and names of others", async () => {
    const made = await makeSet(1, { blockSectors: 8 });
    const set = await made.open();
    for (const sizeBytes of [0, 512, 4097, 1e15]) {
      await assertRejects(
        () => set.createVolume({ sizeBytes }),
        BcacheError,
        "whole blocks of 4096",
      );
    }
    await assertRejects(
      () => set.createVolume({ sizeBytes: MIB, label: "x".repeat(33) }),
      BcacheError,
    );
    await assertRejects(() => set.resizeVolume("bcache0", MIB), BcacheError, "a cached device");
    await assertRejects(() => set.destroyVolume("bcache7"), BcacheError, "there are: bcache0");
    await set.createVolume({ sizeBytes: MIB });
    await assertRejects(() => set.detach("bcache1"), BcacheError, "no backing device");
    await assertRejects(() => set.flushDirty("bcache1"), BcacheError, "no backing device");
    assertEquals(set.volumes.length, 2);
    await set.close();
  });

  test("is destroyed only by force while it holds data, and for good", async () => {
    const made = await makeSet(1);
    let set = await made.open();
    await set.createVolume({ sizeBytes: MIB });
    const volume = volumeNamed(set, "bcache1");
    await write(volume, 0, 4096, 1);
    await assertRejects(() => set.destroyVolume("bcache1"), BcacheError, "4.0 KiB");
    await set.destroyVolume("bcache1", { force: true });
    assertEquals(set.volumes.length, 1);
    assertEquals(volume.tryRead(0, new Uint8Array(512)), false);
    await set.close();
    set = await made.open();
    assertEquals([set.volumes.length, (await set.status()).volumes.length], [1, 0]);
    // A new one has another number: nothing of the old one shows.
    await set.setAttribute(undefined, "flash_vol_create", "1M");
    assertEquals(await valuesIn(volumeNamed(set, "bcache1"), 0, MIB), [0]);
    await set.setAttribute("bcache1", "label", "new");
    const label = (await set.attributes("bcache1", "label"))[0]!.value;
    assertEquals(label, "new");
    await set.setAttribute("bcache1", "unregister", "1");
    assertEquals(set.volumes.length, 1);
    await set.close();
  });

  test("places in the table come back, emptied, when all others are taken", async () => {
    const made = await makeSet(1);
    let set = await made.open();
    await write(volumeNamed(set, "bcache0"), 0, 4096, 0x21);
    const capacity = 8192 / 128;
    for (let round = 0; round < 2 * capacity; round++) {
      await set.createVolume({ sizeBytes: MIB });
      const volume = volumeNamed(set, "bcache1");
      assertEquals(await valuesIn(volume, 0, 8192), [0], `round ${round}`);
      await write(volume, 0, 4096, 1 + round % 200);
      await set.destroyVolume("bcache1", { force: true });
    }
    for (let count = 1; count < capacity; count++) await set.createVolume({ sizeBytes: 65536 });
    await assertRejects(
      () => set.createVolume({ sizeBytes: 65536 }),
      BcacheError,
      "all 64 places for devices of this cache set are in use",
    );
    assertEquals(set.volumes.length, capacity);
    await set.close();
    set = await made.open();
    assertEquals(set.volumes.length, capacity);
    assertEquals(await valuesIn(volumeNamed(set, "bcache0"), 0, 4096), [0x21]);
    await set.close();
  });
});
