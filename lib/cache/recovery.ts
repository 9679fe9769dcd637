/**
 * Starting a cache set: from what is on the device, or anew on a fresh one. Answers to
 * `run_cache_set`, `bch_btree_check` and `bch_journal_replay`.
 *
 * An existing set, in this order:
 *   1. the journal's entries are found (gaps are an error); the newest names root, UUID table and
 *      priorities
 *   2. priorities and generations are read, then the UUID table, then the whole index: first every
 *      pointer's generation is taken over (a bucket may have been given out and not persisted),
 *      then everything is marked, dirty sectors counted
 *   3. buckets that journaled keys point to are pinned, until their keys are in the index
 *   4. the entries are replayed in order; each stays held until its keys are in
 *
 * A new set: priorities, UUID table and an empty root are written, then a first journal entry, and
 * when that is durable the superblock says that all this is valid.
 */
import { BcacheError } from "../base/errors.ts";
import { KeySet } from "../bset/key_set.ts";
import { MARK } from "../buckets/table.ts";
import type { Device } from "../device/device.ts";
import { type JournalReplay, readJournal } from "../journal/reader.ts";
import { freshJournal } from "../journal/writer.ts";
import { keyFault } from "../btree/node_read.ts";
import {
  keyDirty,
  keyDiskWords,
  keyInode,
  keyPointers,
  keySizeSectors,
  keyStart,
  keyText,
  pointerSector,
  setDirty,
  SLOT_WORDS,
} from "../ondisk/bkey.ts";
import type { Geometry } from "../ondisk/geometry.ts";
import {
  discardsBuckets,
  encodeSuperblock,
  setSynchronous,
  type Superblock,
  SUPERBLOCK_SECTOR,
} from "../ondisk/superblock.ts";
import { Engine, type EngineWorld, Foundations } from "./engine.ts";
import { adoptKey, adoptNode } from "./gc.ts";

export interface EngineSource {
  readonly device: Device;
  readonly superblock: Superblock;
  readonly geometry: Geometry;
  readonly world: EngineWorld;
}

/** Fewer blocks leave a node no room between two rewrites. */
const NODE_BLOCKS_MIN = 4;

/** Starts a set that has run before. Rejects with the first thing that is wrong with it. */
export async function startExisting(source: EngineSource): Promise<Engine> {
  refuseTinyNodes(source.geometry, source.device.name);
  const { superblock, geometry, world } = source;
  const probe = new Foundations(source.device, superblock, geometry, world);
  const replay = await readJournal(probe.journalPlace(), { discard: discardsBuckets(superblock) });
  for (const warning of replay.warnings) world.log("warning", warning);
  const engine = new Engine(source, replay.start);
  await stoppedOnFailure(engine, () => recover(engine, replay));
  const entries = replay.entryCount === 1 ? "entry" : "entries";
  world.log(
    "info",
    `journal: ${replay.entryCount} ${entries} replayed, the newest is ${replay.head.seq}`,
  );
  return engine;
}

/** What was started in vain ends before the error is passed on. */
async function stoppedOnFailure(engine: Engine, body: () => Promise<void>): Promise<void> {
  try {
    await body();
  } catch (error) {
    engine.faults.raise(error);
    await engine.stopTasks();
    throw error;
  }
}

async function recover(engine: Engine, replay: JournalReplay): Promise<void> {
  const { head } = replay;
  await engine.prios.read(head.prioBucket);
  engine.prioBucket = head.prioBucket;
  await loadRoot(engine, head.rootKey, head.rootLevel);
  await engine.uuids.read(head.uuidBucketKey, head.version === 0);
  await adoptGenerations(engine, replay);
  await markIndex(engine);
  const pinned = await pinJournalKeys(engine, replay);
  engine.markMetadata();
  engine.buckets.finishGc();
  startBackground(engine);
  await replayKeys(engine, replay);
  for (const bucket of pinned) engine.buckets.unpin(bucket);
  await engine.journal.finishRecovery();
  // The old table format may not be named by an entry of the new version.
  if (head.version === 0) await engine.uuids.write(engine.allocator, () => engine.commitMetadata());
  engine.collector.start(engine.tasks);
}

async function loadRoot(engine: Engine, key: Uint32Array, level: number): Promise<void> {
  const slot = key.slice(0, SLOT_WORDS);
  const fault = keyPointers(slot, 0) === 1
    ? keyFault(slot, 0, level + 1, engine.geometry)
    : `has ${keyPointers(slot, 0)} pointers, expected 1`;
  if (fault !== undefined) {
    throw new BcacheError(
      "BadFormat",
      `${engine.cache.name}: journal: the root's key ${keyText(slot, 0)} ${fault}`,
    );
  }
  await engine.btree.loadRoot(slot, level);
}

/**
 * Takes over generations that are ahead of the ones on disk: parents first, then their children.
 */
async function adoptGenerations(engine: Engine, replay: JournalReplay): Promise<void> {
  const { btree, buckets } = engine;
  adoptKey(buckets, btree.root.key, 0, btree.root.level + 1);
  for (let level = btree.root.level; level >= 0; level--) {
    await btree.walk(level, { inode: 0, offset: 0 }, (node) => {
      adoptNode(buckets, node);
      return true;
    });
  }
  for await (const key of journalKeys(engine, replay)) adoptKey(buckets, key.slot, 0, 0);
}

async function markIndex(engine: Engine): Promise<void> {
  const { btree, collector } = engine;
  collector.markKey(btree.root.key, 0, btree.root.level + 1);
  for (let level = btree.root.level; level >= 0; level--) {
    await btree.walk(level, { inode: 0, offset: 0 }, (node) => {
      if (level === 0) btree.forgetStaleDirt(node.base);
      collector.markNode(node);
      if (level === 0) countDirty(engine, node.base);
      return true;
    });
  }
}

function countDirty(engine: Engine, set: KeySet): void {
  for (let at = 0; at < set.count * SLOT_WORDS; at += SLOT_WORDS) {
    if (!keyDirty(set.words, at)) continue;
    engine.dirty.add(
      keyInode(set.words, at),
      keyStart(set.words, at),
      keySizeSectors(set.words, at),
    );
  }
}

/** Every key of the journal, as a slot that is used again for the next. */
async function* journalKeys(
  engine: Engine,
  replay: JournalReplay,
): AsyncGenerator<{ slot: Uint32Array; seq: number; last: boolean }> {
  const slot = new Uint32Array(SLOT_WORDS);
  for await (const entry of replay.entries()) {
    let at = entry.start;
    while (at < entry.end) {
      const words = keyDiskWords(entry.words, at);
      slot.fill(0);
      slot.set(entry.words.subarray(at, at + Math.min(words, SLOT_WORDS)));
      const fault = words > SLOT_WORDS
        ? `has ${keyPointers(entry.words, at)} pointers, expected at most 1`
        : keyFault(slot, 0, 0, engine.geometry);
      at += words;
      if (fault !== undefined && fault !== "") {
        throw new BcacheError(
          "BadFormat",
          `${engine.cache.name}: journal entry ${entry.seq}: key ${keyText(slot, 0)} ${fault}`,
        );
      }
      if (keySizeSectors(slot, 0) > 0) yield { slot, seq: entry.seq, last: at >= entry.end };
    }
  }
}

/** Buckets of journaled keys must not be reused before these are in the index. */
async function pinJournalKeys(engine: Engine, replay: JournalReplay): Promise<Set<number>> {
  const pinned = new Set<number>();
  const { buckets, btree, collector } = engine;
  for await (const { slot } of journalKeys(engine, replay)) {
    if (btree.isBad(slot, 0, 0)) continue;
    collector.markKey(slot, 0, 0);
    const bucket = Math.floor(pointerSector(slot, 0) / buckets.bucketSectors);
    if (pinned.has(bucket)) continue;
    pinned.add(bucket);
    buckets.pin(bucket);
  }
  return pinned;
}

async function replayKeys(engine: Engine, replay: JournalReplay): Promise<void> {
  const { inserter, journal, btree } = engine;
  const batch = new KeySet(1);
  let done = replay.start.firstSeq;
  for await (const { slot, seq } of journalKeys(engine, replay)) {
    for (; done < seq; done++) journal.pins.release(done);
    // Superseded and reused since: it hides older keys, but its data is gone.
    if (btree.isBad(slot, 0, 0)) setDirty(slot, 0, false);
    batch.clear();
    batch.push(slot, 0);
    // await: a leaf may be written, and so filled up, between being ready and this; look again.
    while (!inserter.canInsert(batch)) await inserter.prepare(batch);
    inserter.insert(batch, seq);
  }
  for (; done < replay.start.nextSeq; done++) journal.pins.release(done);
}

function startBackground(engine: Engine): void {
  if (!engine.allocator.firstFill(true)) {
    throw new BcacheError(
      "NoSpace",
      `${engine.cache.name}: no free bucket is left for the cache's own metadata`,
    );
  }
  engine.journal.start();
  engine.allocator.start(engine.tasks);
}

/** Starts a set on a device whose superblock says that nothing on it is valid. */
export async function startNew(source: EngineSource): Promise<Engine> {
  const { superblock, geometry, device } = source;
  refuseTinyNodes(geometry, device.name);
  superblock.journalBucketCount = geometry.newJournalBucketCount;
  const engine = new Engine(source, freshJournal(superblock.journalBucketCount));
  await stoppedOnFailure(engine, () => initialize(engine));
  return engine;
}

async function initialize(engine: Engine): Promise<void> {
  const { superblock, buckets } = engine;
  for (let index = 0; index < superblock.journalBucketCount; index++) {
    buckets.setMark(superblock.firstBucket + index, MARK.metadata);
  }
  buckets.finishGc();
  engine.journaling = false;
  if (!engine.allocator.firstFill() || !await engine.prios.write()) {
    throw new BcacheError("NoSpace", `${engine.cache.name}: too few buckets to begin with`);
  }
  await engine.uuids.write(engine.allocator, () => Promise.resolve());
  await engine.replacer.makeFirstRoot();
  // What the beginning took, the priorities' bucket above all, must be there for the next round.
  engine.allocator.firstFill(true);
  engine.journaling = true;
  engine.journal.start();
  await engine.journal.finishRecovery();
  // All that the entry names is durable before it (its preflush); the superblock comes last.
  await engine.journal.commit();
  setSynchronous(superblock, true);
  await writeCacheSuperblock(engine);
  engine.allocator.start(engine.tasks);
  engine.collector.start(engine.tasks);
}

/** Writes the cache device's superblock and makes it stable. */
export async function writeCacheSuperblock(engine: Engine): Promise<void> {
  const { superblock, cache, world } = engine;
  superblock.sequence++;
  superblock.lastMountSeconds = world.clock.wallSeconds() >>> 0;
  await cache.write(SUPERBLOCK_SECTOR, encodeSuperblock(superblock), { fua: true });
}

function refuseTinyNodes(geometry: Geometry, name: string): void {
  if (geometry.nodeBlocks >= NODE_BLOCKS_MIN) return;
  throw new BcacheError(
    "NotSupported",
    `${name}: a b-tree node has ${geometry.nodeBlocks} blocks, expected at least ` +
      `${NODE_BLOCKS_MIN}: make the cache with larger buckets (-b) or smaller blocks (-w)`,
  );
}
