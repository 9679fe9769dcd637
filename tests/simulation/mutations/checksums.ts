/**
 * Checksums that are not looked at. A power cut tears hardly anything that they would have to tell,
 * as headers are written last: that damage is not believed is shown by the table of damage.
 */
import type { Mutation } from "./mutation.ts";

export const CHECKSUMS: readonly Mutation[] = [
  {
    name: "the checksum of journal entries is ignored",
    file: "lib/ondisk/jset.ts",
    text: '    return { reason: "bad checksum", detail };',
    becomes: "    void detail;",
    hunts: [],
    damaged: "journal: the newest entry",
  },
  {
    name: "the checksum of b-tree nodes is ignored",
    file: "lib/ondisk/bset.ts",
    text: "    return `bad checksum: found",
    becomes: "    void `bad checksum: found",
    hunts: [],
    damaged: "b-tree: a later set of a leaf",
  },
  {
    name: "the checksum of priorities is ignored",
    file: "lib/ondisk/prio_set.ts",
    text: '    return { reason: "bad checksum", detail };',
    becomes: "    void detail;",
    hunts: [],
    damaged: "priorities and generations",
  },
  {
    name: "the checksum of superblocks is ignored",
    file: "lib/ondisk/superblock_verify.ts",
    text: '    return { code: "BadChecksum", detail: `${found}; ${DAMAGED}` };',
    becomes: "    void found;",
    hunts: [],
    damaged: "superblock of a backing device",
  },
];
