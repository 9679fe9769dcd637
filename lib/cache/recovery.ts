/**
 * Starting a cache set: from what is on the device, or anew on a fresh one. Answers to
 * `run_cache_set`, `bch_btree_check` and `bch_journal_replay`.
 *
 * An existing set, in this order:
 *   1. the journal's entries are found (gaps are an error); the newest names root, UUID table and
 *      priorities
 *   2. priorities and generations are read, then the UUID table, then the whole index, once: of
 *      each node, every pointer's generation is taken over (a bucket may have been given out and
 *      not persisted), then everything is marked, dirty sectors counted; the next nodes are read
 *      meanwhile
 *   3. buckets that journaled keys point to are pinned, until their keys are in the index
 *   4. the entries are replayed in order; each stays held until its keys are in
 *
 * A new set: priorities, UUID table and an empty root are written, then a first journal entry, and
 * when that is durable the superblock says that all this is valid.
 */
import { BcacheError, DAMAGE_ADVICE } from "../base/errors.ts";
import { KeySet } from "../bset/key_set.ts";
import { MARK } from "../buckets/table.ts";
import type { Device } from "../device/device.ts";
import { findLaterEntry, type JournalReplay, readJournal } from "../journal/reader.ts";
import { freshJournal } from "../journal/writer.ts";
import type { Btree } from "../btree/btree.ts";
import type { BtreeNode } from "../btree/node.ts";
import { dirtFault, keyFault, startFault } from "../btree/node_read.ts";
import {
  INODE_MAX,
  keyDirty,
  keyDiskWords,
  keyInode,
  keyOffset,
  keyPointers,
  keySizeSectors,
  keyStart,
  keyText,
  OFFSET_MAX,
  pointerGen,
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
import { adoptKey, adoptNode } from "./collection/marking.ts";
import { LostDirt } from "./lost_dirt.ts";
import { StartReporter } from "./start_progress.ts";
import { refuseContradictions } from "./uuid_damage.ts";

export interface EngineSource {
  readonly device: Device;
  readonly superblock: Superblock;
  readonly geometry: Geometry;
  readonly world: EngineWorld;
}

/** Marking begins anew at most so often; once is enough for every sound index. */
const ROUNDS_MAX = 2;

/**
 * A node of one block has no room behind its first set: every change would make a new node, and a
 * new root, which needs a journal entry; while the journal, when it is full, waits for that very
 * leaf to be written. Linux accepts such a cache, and can stand still for ever with it.
 */
const NODE_BLOCKS_MIN = 2;

/** Starts a set that has run before. Rejects with the first thing that is wrong with it. */
export async function startExisting(source: EngineSource): Promise<Engine> {
  refuseTinyNodes(source.geometry, source.device.name);
  const { superblock, geometry, world } = source;
  const probe = new Foundations(source.device, superblock, geometry, world);
  const replay = await readJournal(probe.journalPlace(), { discard: discardsBuckets(superblock) });
  for (const warning of replay.warnings) world.log("warning", warning);
  const engine = new Engine(source, replay.start);
  const keys = await stoppedOnFailure(engine, () => recover(engine, replay));
  await stoppedOnFailure(engine, () => writeCacheSuperblock(engine));
  // A set that was closed leaves one entry, which names where everything is.
  const entries = replay.entryCount === 1 ? "entry" : "entries";
  if (keys > 0) {
    const what = `${replay.entryCount} ${entries} with ${keys} ${keys === 1 ? "key" : "keys"}`;
    world.log("info", `journal: ${what} replayed, the newest is ${replay.head.seq}`);
  }
  return engine;
}

/** What was started in vain ends before the error is passed on. */
async function stoppedOnFailure<T>(engine: Engine, body: () => Promise<T>): Promise<T> {
  try {
    return await body();
  } catch (error) {
    engine.faults.raise(error);
    await engine.stopTasks();
    throw error;
  }
}

/** Resolves with the number of keys that the journal brought back. */
async function recover(engine: Engine, replay: JournalReplay): Promise<number> {
  const { head } = replay;
  const progress = new StartReporter(engine.world);
  await engine.prios.read(head.prioBucket);
  engine.prioBucket = head.prioBucket;
  await loadRoot(engine, head.rootKey, head.rootLevel);
  await engine.uuids.read(head.uuidBucketKey, head.version === 0);
  refuseContradictions(engine);
  adoptKey(engine.buckets, engine.btree.root.key, 0, engine.btree.root.level + 1);
  await eachJournalKey(engine, replay, (slot) => void adoptKey(engine.buckets, slot, 0, 0));
  const lost = new LostDirt();
  engine.btree.onStaleDirt = (words, at) => {
    // What a device gave up that was detached or destroyed is nobody's loss.
    const inode = keyInode(words, at);
    const isKnown = inode < engine.uuids.capacity;
    if (!isKnown || engine.uuids.slotState(inode) !== "invalidated") lost.note(words, at);
  };
  await markIndex(engine, progress);
  engine.btree.onStaleDirt = undefined;
  if (!lost.isEmpty) {
    await eachJournalKey(engine, replay, (slot) => {
      lost.cover(slot, 0);
      return undefined;
    });
  }
  lost.tell(engine.world.log, engine.cache.name);
  const pinned = await pinJournalKeys(engine, replay);
  refuseSharedMetadata(engine);
  engine.markMetadata();
  engine.buckets.finishGc();
  startBackground(engine);
  const keys = await replayKeys(engine, replay, progress);
  for (const bucket of pinned) engine.buckets.unpin(bucket);
  engine.dead.begin();
  await engine.journal.finishRecovery();
  // The old table format may not be named by an entry of the new version.
  if (head.version === 0) await engine.uuids.write(engine.allocator, () => engine.commitMetadata());
  engine.collector.start(engine.tasks);
  return keys;
}

async function loadRoot(engine: Engine, key: Uint32Array, level: number): Promise<void> {
  const slot = key.slice(0, SLOT_WORDS);
  const fault = rootFault(engine, slot, level);
  if (fault !== undefined) {
    throw new BcacheError(
      "BadFormat",
      `${engine.cache.name}: journal: the root's key ${keyText(slot, 0)} ${fault}; ` +
        DAMAGE_ADVICE,
    );
  }
  await engine.btree.loadRoot(slot, level);
}

/** Why the journal's key cannot be the root's; undefined when it can. */
function rootFault({ buckets, geometry }: Engine, slot: Uint32Array, level: number) {
  if (keyPointers(slot, 0) !== 1) return `has ${keyPointers(slot, 0)} pointers, expected 1`;
  const fault = keyFault(slot, 0, level + 1, geometry);
  if (fault !== undefined) return fault;
  // A walk goes on until the last position: over a root that ends before it, for ever.
  const isWhole = keyInode(slot, 0) === INODE_MAX && keyOffset(slot, 0) === OFFSET_MAX;
  if (!isWhole) return "does not end at the last position";
  const bucket = Math.floor(pointerSector(slot, 0) / geometry.bucketSectors);
  if (buckets.staleness(bucket, pointerGen(slot, 0)) === 0) return undefined;
  return `is stale: its bucket is at generation ${buckets.gen[bucket]}`;
}

/**
 * Marks everything the index uses, and counts what is dirty; a node at a time, parents first. A
 * pointer may name a generation ahead of the one on disk; when that comes to light only after its
 * bucket was marked, marking begins anew, with all generations known.
 */
async function markIndex(engine: Engine, progress: StartReporter): Promise<void> {
  for (let round = 0; await markLevels(engine, progress); round++) {
    if (round >= ROUNDS_MAX) {
      throw new BcacheError(
        "BadFormat",
        `${engine.cache.name}: b-tree: the generations of its pointers contradict each other; ` +
          DAMAGE_ADVICE,
      );
    }
    engine.buckets.forgetMarks();
    engine.dirty.clear();
  }
}

/** Whether a generation moved on under a mark. */
async function markLevels(
  engine: Engine,
  progress: StartReporter,
): Promise<boolean> {
  const { btree, buckets, collector } = engine;
  let moved = false;
  let done = 0;
  let total = 1;
  collector.marker.markKey(btree.root.key, 0, btree.root.level + 1);
  for (let level = btree.root.level; level >= 0; level--) {
    let before = { inode: 0, offset: 0 };
    await btree.walk(level, before, (node) => {
      if (level === 0) refuseEarlyKeys(engine, node, before);
      before = { inode: node.endInode, offset: node.endOffset };
      if (adoptNode(buckets, node)) moved = true;
      if (level === 0) {
        btree.forgetStaleDirt(node.base);
        countDirty(engine, node.base);
      } else total += countGood(btree, node);
      collector.markNode(node);
      progress.report("index", ++done, total);
      return true;
    });
  }
  return moved;
}

/** @param before where the leaf before ends */
function refuseEarlyKeys(
  engine: Engine,
  leaf: BtreeNode,
  before: { inode: number; offset: number },
): void {
  const fault = startFault(leaf, before);
  if (fault === undefined) return;
  const where = `${engine.cache.name}: b-tree node (level 0) at bucket ${leaf.bucket}`;
  throw new BcacheError("BadFormat", `${where}: ${fault}; ${DAMAGE_ADVICE}`);
}

function countGood(btree: Btree, { base, level }: BtreeNode): number {
  let good = 0;
  for (let at = 0; at < base.count * SLOT_WORDS; at += SLOT_WORDS) {
    if (!btree.isBad(base.words, at, level)) good++;
  }
  return good;
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

/** A key of the journal, in a slot that is used again for the next. */
type KeyVisitor = (slot: Uint32Array, seq: number) => Promise<void> | undefined;

/**
 * Visits every key of the journal in order. A visitor that has to wait returns a promise; most do
 * not, and a key then costs no turn of the event loop.
 */
async function eachJournalKey(
  engine: Engine,
  replay: JournalReplay,
  visit: KeyVisitor,
  entryDone?: (seq: number) => void,
): Promise<void> {
  const slot = new Uint32Array(SLOT_WORDS);
  for await (const entry of replay.entries()) {
    let at = entry.start;
    while (at < entry.end) {
      const words = keyDiskWords(entry.words, at);
      slot.fill(0);
      slot.set(entry.words.subarray(at, at + Math.min(words, SLOT_WORDS)));
      const fault = words > SLOT_WORDS
        ? `has ${keyPointers(entry.words, at)} pointers, expected at most 1`
        : keyFault(slot, 0, 0, engine.geometry) ?? dirtFault(slot, 0);
      at += words;
      if (fault !== undefined && fault !== "") {
        throw new BcacheError(
          "BadFormat",
          `${engine.cache.name}: journal entry ${entry.seq}: key ${keyText(slot, 0)} ${fault}; ` +
            DAMAGE_ADVICE,
        );
      }
      if (keySizeSectors(slot, 0) === 0) continue;
      const wait = visit(slot, entry.seq);
      if (wait !== undefined) await wait;
    }
    entryDone?.(entry.seq);
  }
}

/**
 * Buckets of journaled keys must not be reused before these are in the index.
 * @throws BcacheError BadFormat when their generations contradict each other
 */
async function pinJournalKeys(engine: Engine, replay: JournalReplay): Promise<Set<number>> {
  const pinned = new Set<number>();
  const { buckets, btree, collector } = engine;
  await eachJournalKey(engine, replay, (slot, seq) => {
    if (btree.isBad(slot, 0, 0)) return;
    collector.marker.markKey(slot, 0, 0);
    refuseOtherGen(engine, slot, seq);
    const bucket = Math.floor(pointerSector(slot, 0) / buckets.bucketSectors);
    if (pinned.has(bucket)) return;
    pinned.add(bucket);
    buckets.pin(bucket);
  });
  return pinned;
}

/** All generations are known: one that is not behind its bucket's is the bucket's. */
function refuseOtherGen({ buckets, cache }: Engine, slot: Uint32Array, seq: number): void {
  const bucket = Math.floor(pointerSector(slot, 0) / buckets.bucketSectors);
  const gen = buckets.gen[bucket]!;
  if (pointerGen(slot, 0) === gen) return;
  throw new BcacheError(
    "BadFormat",
    `${cache.name}: journal entry ${seq}: key ${keyText(slot, 0)} contradicts others about its ` +
      `bucket ${bucket}, which is at generation ${gen}; ${DAMAGE_ADVICE}`,
  );
}

/**
 * Throws if the index, or the journal, has something where the journal or the UUID table is: what
 * is served from there would be no data. (Where the priorities are marking finds it out.)
 */
function refuseSharedMetadata({ superblock, buckets, uuids, cache }: Engine): void {
  const refuse = (bucket: number, owner: string): void => {
    if (buckets.mark[bucket] === MARK.none) return;
    throw new BcacheError(
      "BadFormat",
      `${cache.name}: bucket ${bucket} has the ${owner}, and the index has something else there: ` +
        "the index is damaged; run check, and save what can be read with extract --rescue",
    );
  };
  for (let index = 0; index < superblock.journalBucketCount; index++) {
    refuse(superblock.firstBucket + index, "journal");
  }
  if (uuids.bucket !== 0) refuse(uuids.bucket, "UUID table");
}

async function replayKeys(
  engine: Engine,
  replay: JournalReplay,
  progress: StartReporter,
): Promise<number> {
  const { inserter, journal, btree } = engine;
  const batch = new KeySet(1);
  const insert = async (seq: number): Promise<void> => {
    // await: a leaf may be written, and so filled up, between being ready and this; look again.
    while (!inserter.canInsert(batch)) await inserter.prepare(batch);
    inserter.insert(batch, seq);
  };
  let done = replay.start.firstSeq;
  let entries = 0;
  let keys = 0;
  await eachJournalKey(engine, replay, (slot, seq) => {
    keys++;
    for (; done < seq; done++) journal.pins.release(done);
    // Superseded and reused since: it hides older keys, but its data is gone.
    if (btree.isBad(slot, 0, 0)) setDirty(slot, 0, false);
    batch.clear();
    batch.push(slot, 0);
    if (!inserter.canInsert(batch)) return insert(seq);
    inserter.insert(batch, seq);
    return undefined;
  }, () => progress.report("replay", ++entries, replay.entryCount));
  for (; done < replay.start.nextSeq; done++) journal.pins.release(done);
  return keys;
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

/**
 * Starts a set on a device whose superblock says that nothing on it is valid. Rejects with
 * BadFormat, with nothing written, when the journal tells that this cannot be.
 */
export async function startNew(source: EngineSource): Promise<Engine> {
  const { superblock, geometry, device, world } = source;
  refuseTinyNodes(geometry, device.name);
  superblock.journalBucketCount = geometry.newJournalBucketCount;
  await refuseOldJournal(new Foundations(device, superblock, geometry, world));
  const engine = new Engine(source, freshJournal(superblock.journalBucketCount));
  await stoppedOnFailure(engine, () => initialize(engine));
  return engine;
}

/** Beginning anew over a set that ran would throw away what is dirty, as Linux does. */
async function refuseOldJournal(probe: Foundations): Promise<void> {
  const found = await findLaterEntry(probe.journalPlace());
  if (found === undefined) return;
  throw new BcacheError(
    "BadFormat",
    `${probe.cache.name}: superblock: says that the set never ran, but bucket ${found.bucket} ` +
      `has journal entry ${found.seq} of it: the superblock is an old copy; restore sector 8 ` +
      "from a newer one, or make the cache anew if nothing in it is dirty",
  );
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
  engine.dead.begin();
  engine.collector.start(engine.tasks);
}

/** Writes the cache device's superblock and makes it stable. */
export async function writeCacheSuperblock(engine: Engine): Promise<void> {
  const { superblock, cache, world } = engine;
  superblock.sequence++;
  superblock.lastMountSeconds = world.clock.wallSeconds() >>> 0;
  await cache.write(SUPERBLOCK_SECTOR, encodeSuperblock(superblock), { fua: true });
}

/**
 * Changes flags of the cache device's superblock, and has them as before when it cannot be written.
 * One at a time: what one puts back must not be another's. `whenStored` makes it take effect.
 */
export async function changeCacheSuperblock(
  engine: Engine,
  { change, whenStored }: { change: (superblock: Superblock) => void; whenStored?: () => void },
): Promise<void> {
  const { superblock } = engine;
  await engine.superblockWrites.run(async () => {
    const { flagsLow } = superblock;
    change(superblock);
    try {
      await writeCacheSuperblock(engine);
    } catch (error) {
      superblock.flagsLow = flagsLow;
      throw error;
    }
    whenStored?.();
  });
}

function refuseTinyNodes(geometry: Geometry, name: string): void {
  if (geometry.nodeBlocks >= NODE_BLOCKS_MIN) return;
  throw new BcacheError(
    "NotSupported",
    `${name}: a b-tree node is a single block, expected at least ${NODE_BLOCKS_MIN}: ` +
      "make the cache with larger buckets (-b) or smaller blocks (-w)",
  );
}
