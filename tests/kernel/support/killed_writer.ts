/**
 * Writes to a cache set until it is killed: what has to be there afterwards first, then a flush,
 * then, for as long as it lives, what may be there or not.
 */
import { readFileSync } from "node:fs";
import type { Orders } from "./ours.ts";
import { withSet, writePieces } from "./ours.ts";

const orders = JSON.parse(readFileSync(process.argv[2]!, "utf8")) as Orders;
const data = new Uint8Array(readFileSync(orders.dataPath));
await withSet(orders.paths, { readOnly: false }, async (set) => {
  for (const [index, pieces] of orders.certain.entries()) {
    await writePieces(set, index, pieces, data);
  }
  for (const volume of set.volumes) await volume.flush();
  process.stdout.write("flushed\n");
  for (;;) {
    for (const [index, pieces] of orders.uncertain.entries()) {
      await writePieces(set, index, pieces, data);
      // Some of it is flushed, some is not: a journal with entries to replay, and a tail without.
      await set.volumes[index]!.flush();
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
  }
});
