/**
 * A closer look at one recovery, for a sample of all: what it costs is several starts.
 * - `check`, which shares no code with recovery, finds no error on what the power cut left, and
 *   none after the set was closed;
 * - the engine counts as dirty, to the byte, what the check counts over the keys;
 * - volumes soon hold no more than their sizes: what one that was made smaller had is given up;
 * - a second start, after a clean end, finds the same dirty bytes, and every sector the same (but
 *   where a later write that was not flushed shows, as cached data was let go of meanwhile);
 * - drained and detached, nothing is dirty, and each backing disk alone holds it all, stable, and
 *   says that it needs no cache.
 */
import { checkCache } from "../../lib/offline/check.ts";
import type { CheckReport } from "../../lib/offline/check.ts";
import { findingText } from "../../lib/offline/findings.ts";
import type { CacheSet } from "../../lib/cache/cache_set.ts";
import { checkAllRecovered, checkBackingAlone, volumesOf } from "./recovery_checks.ts";
import type { Oracle } from "./oracle.ts";
import { worldAfterCut } from "./world.ts";
import type { Audited, Engine, EngineKind, World, WorldOptions } from "./world.ts";

export interface AuditedCut {
  readonly kind: EngineKind;
  /** A world with the disks as the power cut left them. */
  readonly world: World;
  /** For the world of the second start. */
  readonly options: Omit<WorldOptions, "images">;
  readonly oracles: readonly Oracle[];
  /** Their times at which the power was cut. */
  readonly cutAt: readonly number[];
  /** See Scenario.steadfast. */
  readonly steadfast: boolean;
}

/** The figures of a running set, for `Engine.audited`. */
export async function auditedSet(set: CacheSet): Promise<Audited> {
  return {
    dirtyBytesAtStart: await dirtyBytesOf(set, "everything"),
    dirtyBytes: (of) => dirtyBytesOf(set, of),
    leftBytes: () => leftBytesOf(set),
    detachAll: async () => {
      for (const { name, attached } of (await set.status()).devices) {
        if (attached) await set.detach(name);
      }
    },
  };
}

async function dirtyBytesOf(
  set: CacheSet,
  of: "everything" | "cached devices",
): Promise<number> {
  const { devices, volumes } = await set.status();
  const cached = devices.reduce((sum, { dirtyBytes }) => sum + dirtyBytes, 0);
  if (of === "cached devices") return cached;
  return volumes.reduce((sum, { usedBytes }) => sum + usedBytes, cached);
}

/** What volumes hold beyond their sizes: nobody can ask for it, so it must not stay. */
export async function leftBytesOf(set: CacheSet): Promise<number> {
  const { volumes } = await set.status();
  return volumes.reduce(
    (sum, { usedBytes, sizeBytes }) => sum + Math.max(0, usedBytes - sizeBytes),
    0,
  );
}

/** What a power cut left in the cache for nobody is given up soon. @throws when it is not */
export async function expectNothingLeft(world: World, left: () => Promise<number>): Promise<void> {
  for (let tries = 0; await left() > 0; tries++) {
    if (tries === LEFT_TRIES) {
      throw new Error(`volumes hold ${await left()} bytes more than their sizes for good`);
    }
    await world.run(world.clock.sleep(LEFT_STEP_MS));
  }
}

/** How often, and how far apart, it is looked whether nothing is left. */
const LEFT_TRIES = 100;
const LEFT_STEP_MS = 100;

/** Starts of the engine that an audit takes. */
export const AUDIT_STARTS = 2;

/** @throws with what is wrong */
export async function auditRecovery(cut: AuditedCut): Promise<void> {
  const { kind, world, oracles } = cut;
  const before = dirtyBytesIn(await checked(world, "after the power cut"));
  const engine = await world.run(kind.open(world.parts)) as Engine;
  const audited = engine.audited;
  if (audited === undefined) throw new Error(`${kind.name} has nothing to audit`);
  expectDirty("after the power cut", audited.dirtyBytesAtStart, before);
  const found = await readAll(cut, engine, oracles, cut.cutAt);
  await expectNothingLeft(world, () => audited.leftBytes());
  const atEnd = await audited.dirtyBytes("everything");
  await world.run(engine.close());
  const closed = dirtyBytesIn(await checked(world, "after the set was closed"));
  // Writeback may have finished between the two; nothing became dirty.
  if (closed > atEnd) throw new Error(`${closed} bytes are dirty, ${atEnd} before the set closed`);
  const second = { ...cut, world: worldAfterCut(world.snapshot(), "all", cut.options) };
  await startAgain(second, found, closed);
}

/** @param oracles say what the first start found */
async function startAgain(
  second: Pick<AuditedCut, "kind" | "world" | "steadfast">,
  oracles: readonly Oracle[],
  dirtyBytes: number,
): Promise<void> {
  const { kind, world } = second;
  const engine = await world.run(kind.open(world.parts)) as Engine;
  const audited = engine.audited!;
  expectDirty("at the second start", audited.dirtyBytesAtStart, dirtyBytes);
  const found = await readAll(second, engine, oracles, oracles.map(({ time }) => time));
  await world.run(engine.drain());
  if (kind.backingHolds !== false) {
    expectDirty("after the drain", await audited.dirtyBytes("cached devices"), 0);
    await world.run(audited.detachAll());
  }
  await world.run(engine.close());
  for (const [number, oracle] of found.entries()) {
    checkBackingAlone(world, oracle, number);
  }
  const report = await checked(world, "in the end");
  if (kind.backingHolds === false) return;
  const cached = report.devices.filter(({ kind }) => kind === "cached device");
  expectDirty("in the end, by the check", dirtyBytesIn({ ...report, devices: cached }), 0);
  const bound = report.backings.find(({ state }) => state !== "none");
  if (bound !== undefined) throw new Error(`${bound.name} was detached and is ${bound.state}`);
}

/** Every sector that was ever touched. @returns what may be found from now on */
async function readAll(
  { world, steadfast }: Pick<AuditedCut, "world" | "steadfast">,
  engine: Engine,
  oracles: readonly Oracle[],
  cutAt: readonly number[],
): Promise<Oracle[]> {
  const after: Oracle[] = [];
  for (const [number, volume] of volumesOf(engine).entries()) {
    const options = { cutAt: cutAt[number]!, steadfast };
    const reading = checkAllRecovered(volume, oracles[number]!, options);
    after.push(await world.run(reading) as Oracle);
  }
  return after;
}

async function checked(world: World, when: string): Promise<CheckReport> {
  const { cache, kind } = world;
  const backings = kind.backingHolds === false ? [] : world.backings;
  const report = await world.run(checkCache({ cache, backings })) as CheckReport;
  if (report.btree?.staleDirtyExtents) throw new Error(`check ${when}: a dirty extent is stale`);
  if (report.clean) return report;
  const errors = report.findings.filter(({ severity }) => severity === "error");
  throw new Error(`check ${when}: ${errors.slice(0, 3).map(findingText).join("; ")}`);
}

/** Of what is anybody's still. */
function dirtyBytesIn({ devices }: CheckReport): number {
  const live = devices.filter(({ kind }) => kind !== "invalidated");
  return live.reduce((sum, { dirtyBytes }) => sum + dirtyBytes, 0);
}

function expectDirty(when: string, found: number, expected: number): void {
  if (found === expected) return;
  throw new Error(`${when}: ${found} dirty bytes are counted, expected ${expected}`);
}
