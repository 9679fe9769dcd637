/**
 * The offline check over simulated disks, as they are now: it shares no code with recovery, so
 * what it finds and what the engine then does are held against each other.
 */
import { checkCache } from "../../../lib/offline/check.ts";
import { findingText } from "../../../lib/offline/findings.ts";
import { still } from "../still_disk.ts";
import type { World } from "../world.ts";

/** Dirty bytes by UUID, of cached devices and volumes that the cache knows. */
export type DirtyBytes = ReadonlyMap<string, number>;

/** @throws when it finds an error */
export async function checkOffline(
  world: World,
  slots: readonly number[],
  when: string,
): Promise<DirtyBytes> {
  const backings = slots.map((slot) => still(world.backings[slot]!));
  const report = await checkCache({ cache: still(world.cache), backings });
  if (report.btree?.staleDirtyExtents) throw new Error(`check ${when}: a dirty extent is stale`);
  if (!report.clean) {
    const errors = report.findings.filter(({ severity }) => severity === "error");
    throw new Error(`check ${when}:\n  ${errors.slice(0, 5).map(findingText).join("\n  ")}`);
  }
  const dirty = new Map<string, number>();
  for (const { uuid, kind, dirtyBytes } of report.devices) {
    if (kind !== "invalidated") dirty.set(uuid, (dirty.get(uuid) ?? 0) + dirtyBytes);
  }
  for (const { name, uuid, state } of report.backings) {
    const bytes = dirty.get(uuid) ?? 0;
    if (bytes === 0 || state === "dirty") continue;
    // Whoever looks at the backing device alone must be warned: what is dirty is not on it.
    throw new Error(`check ${when}: ${name} says that it is ${state}, ${bytes} bytes are dirty`);
  }
  return dirty;
}
