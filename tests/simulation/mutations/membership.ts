/** Breakages of what happens when devices and volumes come and go. */
import { hunt } from "./mutation.ts";
import type { Mutation } from "./mutation.ts";

export const MEMBERSHIP: readonly Mutation[] = [
  {
    name: "the journal names a UUID table that is not written yet",
    file: "lib/cache/uuids.ts",
    text: "      await this.#device.write(sector, bytes);",
    becomes: "      void this.#device.write(sector, bytes).catch(() => undefined);",
    hunts: [hunt("flash-volume", 3, 2), hunt("come-and-go", 3, 2)],
    quick: true,
  },
  {
    name: "a change of the UUID table counts as done before the journal names it",
    file: "lib/cache/uuids.ts",
    text: "    await commit();\n",
    becomes: "    void commit().catch(() => undefined);\n",
    hunts: [hunt("flash-volume", 6, 2)],
  },
  {
    name: "a volume is served before its entry is durable",
    file: "lib/cache/members/flash_volumes.ts",
    text: "    await this.#update(inode, {\n      ...emptyUuidEntry(),",
    becomes: "    void this.#update(inode, {\n      ...emptyUuidEntry(),",
    hunts: [hunt("flash-volume", 6, 2)],
  },
  {
    name: "a volume's data is given up before its entry is invalidated",
    file: "lib/cache/members/flash_volumes.ts",
    text: "    await this.#update(inode, invalidated(engine.uuids.entry(inode), now));\n" +
      "    await dropKeys(engine, inode);",
    becomes: "    await dropKeys(engine, inode);\n" +
      "    await engine.committer.flush();\n" +
      "    await this.#update(inode, invalidated(engine.uuids.entry(inode), now));",
    hunts: [hunt("flash-volume", 6, 2)],
  },
  {
    name: "a slot that was given up becomes one that was never used",
    file: "lib/cache/members/slots.ts",
    text: "  return { ...entry, uuid, flags: 0, sectors: 0, invalidated: nowSeconds };",
    becomes: "  void uuid;\n" +
      "  return { ...entry, uuid: new Uint8Array(16), flags: 0, sectors: 0, " +
      "invalidated: nowSeconds };",
    hunts: [hunt("flash-volume", 6, 2)],
  },
  {
    name: "a set runs although the UUID table does not know whose dirty data it has",
    file: "lib/cache/cache_set.ts",
    text: "      refuseUnknownDirt(engine);\n",
    becomes: "      void refuseUnknownDirt;\n",
    hunts: [],
    damaged: "UUID table of a set with a volume",
  },
  {
    name: "a device is detached although something became dirty meanwhile",
    file: "lib/cache/members/detach.ts",
    text: "    if (dev.needsWriteback) return false;\n",
    becomes: "    dev.hasDirty = false;\n",
    hunts: [hunt("come-and-go", 10, 10)],
  },
  {
    name: "a detached device is written to before its superblock says so",
    file: "lib/cache/members/detach.ts",
    text: "    await dev.leaveSet();\n",
    becomes: "    void dev.leaveSet().catch(() => undefined);\n",
    hunts: [hunt("come-and-go", 10, 2)],
  },
];
