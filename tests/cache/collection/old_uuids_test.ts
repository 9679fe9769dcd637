/** A set from before UUID entries had 128 bytes: its table is converted when it starts. */
import { test } from "bun:test";
import { assertEquals } from "@std/assert";
import { BucketReader } from "../../../lib/journal/parse.ts";
import { readJournal } from "../../../lib/journal/reader.ts";
import { sealJset } from "../../../lib/ondisk/jset.ts";
import { emptyUuidEntry, UUID_ENTRY_BYTES } from "../../../lib/ondisk/uuid_entry.ts";
import { EngineWorld, freshWorld } from "../engine_world.ts";

const OLD_ENTRY_BYTES = 64;
/** UUID, label and three times. */
const OLD_ENTRY_USED = 60;

test("a journal of version 0 has its UUID table converted, once", async () => {
  const world = await freshWorld();
  const { engine, device } = world;
  const entryOf = (slot: number) => ({
    ...emptyUuidEntry(),
    uuid: new Uint8Array(16).fill(slot),
    label: new Uint8Array(32).fill(0x60 + slot),
    firstRegistered: 100 + slot,
    lastRegistered: 200 + slot,
  });
  const slots = [1, 2, 7];
  for (const slot of slots) engine.uuids.set(slot, entryOf(slot));
  await world.run(engine.uuids.write(engine.allocator, () => engine.commitMetadata()));
  await world.stop();

  // As an old kernel left it: short entries, and a newest journal entry that says so.
  const table = new Uint8Array(engine.geometry.metaBytes);
  const at = engine.uuids.bucket * engine.geometry.bucketSectors;
  await device.read(at, table);
  const old = new Uint8Array(table.length);
  for (let slot = 0; slot < engine.uuids.capacity; slot++) {
    const entry = table.subarray(slot * UUID_ENTRY_BYTES, slot * UUID_ENTRY_BYTES + OLD_ENTRY_USED);
    old.set(entry, slot * OLD_ENTRY_BYTES);
  }
  await device.write(at, old);
  const place = { ...engine.journalPlace(), device };
  const { newest } = (await readJournal(place)).start;
  const reader = new BucketReader(place);
  const entry = await reader.entryAt(newest!.index, newest!.block);
  if (typeof entry !== "object") throw new Error("the newest entry is there");
  const bytes = new Uint8Array(Math.ceil(entry.bytes.length / 512) * 512);
  bytes.set(entry.bytes);
  sealJset(bytes, { ...entry.header, version: 0 }, place.magic);
  await device.write(reader.sector(newest!.index, newest!.block), bytes);

  for (let start = 0; start < 2; start++) {
    const again = new EngineWorld({ device });
    await again.start();
    for (const slot of slots) assertEquals(again.engine.uuids.entry(slot), entryOf(slot));
    assertEquals(again.engine.uuids.entry(9), emptyUuidEntry());
    await again.stop();
    assertEquals((await readJournal(place)).head.version, 1);
  }
});
