/** Real file systems on the mounted file: made, filled, checked, found again after a restart. */
import { afterAll, beforeAll, test } from "bun:test";
import { assert, assertEquals } from "@std/assert";
import { join } from "node:path";
import { gatherTree, listTree } from "./support/tree.ts";
import { inWorkshop, run, TOP, Workshop } from "./support/workshop.ts";

const TREE_BYTES = 24 << 20;
const LIMIT_MS = 180_000;

/** Every file system: how it is made, and how it is checked without changing anything. */
const FILE_SYSTEMS = {
  ext4: { make: ["mkfs.ext4", "-q"], check: ["fsck.ext4", "-fn"], flags: [] },
  // Two images of one file system may be mounted one after the other: xfs would look at the UUID.
  xfs: { make: ["mkfs.xfs", "-q"], check: ["xfs_repair", "-n"], flags: ["-o", "nouuid"] },
  btrfs: { make: ["mkfs.btrfs", "-q"], check: ["btrfs", "check", "--readonly"], flags: [] },
} as const;

let workshop: Workshop;
let tree: string;
let treeList: string;

beforeAll(() => {
  workshop = new Workshop();
  tree = workshop.makeFolder("tree");
  const sources = ["/usr/share/doc", join(TOP, "node_modules/typescript")];
  const totalBytes = gatherTree(tree, sources, TREE_BYTES);
  assert(totalBytes > 8 << 20, `the tree is a real one, of ${totalBytes} bytes`);
  treeList = listTree(tree);
});
afterAll(() => workshop.close());

for (const [name, system] of Object.entries(FILE_SYSTEMS)) {
  for (const direct of [false, true]) {
    const how = direct ? "--direct-io=on" : "--direct-io=off";
    test(
      `${name} on a loop device with ${how} keeps a real tree over a restart`,
      () =>
        inWorkshop(async (place) => {
          // The cache is smaller than what is written: buckets are reused while the tree is copied.
          const { cache, backing } = await place.format({ cacheMib: 64, backingMib: 512 });
          const flags = ["--cache-mode", "writeback"];

          let served = await place.mount({ cache, backing, flags });
          let loop = await place.attachLoop(served.file, { direct });
          await run(...system.make, loop);
          let folder = await place.mountFileSystem(loop, "fs");
          await run("cp", "-a", tree, join(folder, "tree"));
          await run("umount", folder);
          await run(...system.check, loop);
          await place.detachLoop(loop);
          await place.unmount(served);

          served = await place.mount({ cache, backing, flags });
          loop = await place.attachLoop(served.file, { direct });
          await run(...system.check, loop);
          folder = await place.mountFileSystem(loop, "fs", ...system.flags);
          assertEquals(listTree(join(folder, "tree")) === treeList, true, "the same files");
          await run("umount", folder);
          await place.detachLoop(loop);
          await place.unmount(served);
        }),
      LIMIT_MS,
    );
  }
}
