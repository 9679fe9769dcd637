/** Checksums that are not looked at: with a bit turned over, what is read must not be believed. */
import { hunt, huntWithRot } from "./mutation.ts";
import type { Mutation } from "./mutation.ts";

export const CHECKSUMS: readonly Mutation[] = [
  {
    name: "the checksum of journal entries is ignored",
    file: "lib/ondisk/jset.ts",
    text: '    return { reason: "bad checksum", detail };',
    becomes: "    void detail;",
    hunts: [huntWithRot("small-blocks", "cache", 8), hunt("small-blocks", 8, 2)],
  },
  {
    name: "the checksum of b-tree nodes is ignored",
    file: "lib/ondisk/bset.ts",
    text: "    return `bad checksum: found",
    becomes: "    void `bad checksum: found",
    hunts: [huntWithRot("small-blocks", "cache", 8), huntWithRot("wrap-journal", "cache", 2)],
  },
  {
    name: "the checksum of priorities is ignored",
    file: "lib/ondisk/prio_set.ts",
    text: '    return { reason: "bad checksum", detail };',
    becomes: "    void detail;",
    hunts: [huntWithRot("small-blocks", "cache", 12), huntWithRot("writethrough", "cache", 12)],
  },
  {
    name: "the checksum of superblocks is ignored",
    file: "lib/ondisk/superblock_verify.ts",
    text: '    return { code: "BadChecksum", detail: `${found}; ${advice}` };',
    becomes: "    void advice;",
    hunts: [huntWithRot("small-blocks", "backing", 8), huntWithRot("small-blocks", "cache", 12)],
  },
];
