/** What the journal's tests stand on: a small journal on a memory device, leaves, keys. */
import type { Faults } from "../../lib/base/sync.ts";
import { TaskGroup } from "../../lib/base/sync.ts";
import type { Device } from "../../lib/device/device.ts";
import { freshJournal, Journal, type JournalStart } from "../../lib/journal/writer.ts";
import type { JournalPlace } from "../../lib/journal/parse.ts";
import type { PinHolder, Pins } from "../../lib/journal/pins.ts";
import { keyOffset, setKey, SLOT_WORDS } from "../../lib/ondisk/bkey.ts";
import { JSET } from "../../lib/ondisk/jset.ts";
import { ManualClock } from "../support/manual_clock.ts";

export const MAGIC = { low: 0x2f6b36bd, high: 0x631d0163 };
export const KEY_WORDS = SLOT_WORDS;

export class TestFaults implements Faults {
  failed: Error | undefined;
  raise(error: unknown): void {
    this.failed ??= error instanceof Error ? error : new Error(String(error));
  }
}

export interface Shape {
  readonly buckets: number;
  readonly bucketSectors: number;
  readonly blockSectors: number;
  readonly queueEntries?: number;
  readonly pins?: number;
}

/** The journal buckets follow bucket 0, as on a real device. */
export function placeOn(device: Device, shape: Shape): JournalPlace {
  return {
    device,
    magic: MAGIC,
    bucketSectors: shape.bucketSectors,
    blockSectors: shape.blockSectors,
    buckets: Array.from({ length: shape.buckets }, (_, index) => index + 1),
  };
}

export interface World {
  readonly journal: Journal;
  readonly clock: ManualClock;
  readonly faults: TestFaults;
  readonly tasks: TaskGroup;
  /** What the stamper writes as the prio bucket. */
  stamp: { prioBucket: number };
}

export function openJournal(device: Device, shape: Shape, start?: JournalStart): World {
  const clock = new ManualClock();
  const faults = new TestFaults();
  const tasks = new TaskGroup((error) => faults.raise(error));
  const stamp = { prioBucket: 7 };
  const journal = new Journal({
    place: placeOn(device, shape),
    start: start ?? freshJournal(shape.buckets),
    clock,
    faults,
    tasks,
    stamper: {
      stamp: (words) => {
        setKey(words, JSET.btree_root / 4, {
          inode: 0xfffff,
          offset: 2 ** 63,
          sizeSectors: 8,
          pointer: { sector: 4096, gen: 1 },
        });
        words[JSET.prio_bucket / 4] = stamp.prioBucket;
      },
    },
    ...(shape.queueEntries === undefined ? {} : { queueEntries: shape.queueEntries }),
    ...(shape.pins === undefined ? {} : { pins: shape.pins }),
  });
  journal.start();
  return { journal, clock, faults, tasks, stamp };
}

/** The words of a key whose offset is `id`. */
export function keyOf(id: number): Uint32Array {
  const words = new Uint32Array(SLOT_WORDS);
  setKey(words, 0, { inode: 0, offset: id, sizeSectors: 1, pointer: { sector: id, gen: 1 } });
  return words;
}

/** The ids of the keys in `words[start, end)`, all made by `keyOf`. */
export function idsOf(words: Uint32Array, start: number, end: number): number[] {
  const ids: number[] = [];
  for (let at = start; at < end; at += SLOT_WORDS) ids.push(keyOffset(words, at));
  return ids;
}

/** A dirty leaf: collects keys, pins the entry of the oldest, writes them when asked. */
export class Leaf implements PinHolder {
  /** Ids of keys that are on the disk. Survives power cuts. */
  readonly durable: Set<number>;
  flushes = 0;
  #pins: Pins;
  #write: () => Promise<void>;
  #dirty: number[] = [];
  #pinnedSeq = 0;
  #writing: Promise<void> | undefined;

  constructor(pins: Pins, durable: Set<number>, write: () => Promise<void>) {
    this.#pins = pins;
    this.durable = durable;
    this.#write = write;
  }

  insert(seq: number, id: number): void {
    if (this.#dirty.length === 0) {
      this.#pinnedSeq = seq;
      this.#pins.pin(seq, this);
    }
    this.#dirty.push(id);
  }

  async flushForJournal(): Promise<void> {
    this.flushes++;
    // What is being written belongs to what is pinned now as well.
    while (this.#writing !== undefined) await this.#writing;
    if (this.#dirty.length === 0) return;
    this.#writing = this.#writeDirty();
    await this.#writing;
  }

  async #writeDirty(): Promise<void> {
    const ids = this.#dirty;
    const seq = this.#pinnedSeq;
    this.#dirty = [];
    try {
      await this.#write();
      for (const id of ids) this.durable.add(id);
      this.#pins.unpin(seq, this);
    } finally {
      this.#writing = undefined;
    }
  }
}
