/**
 * A device as a range of bytes: BlockVolume over whatever stores its sectors.
 *
 * The stores below work in whole sectors, and caches in whole blocks. Here a request of any offset
 * and length becomes that: a read that is not in blocks goes through a buffer; a write that is not
 * in blocks reads the blocks at its ends, under the range's lock, and writes them whole.
 *
 * Here is also the gate: what is under a volume can be exchanged, and a volume can be stopped, and
 * both wait for the requests that are under way.
 */
import { BcacheError, ERRNO } from "../../base/errors.ts";
import { Shared, Signal } from "../../base/sync.ts";
import type { BlockVolume } from "../ports.ts";
import type { RangeLocks } from "../ranges.ts";
import type { SectorStore } from "./sector_store.ts";

const SECTOR = 512;
/** A range is zeroed in steps of this, so that other requests get their turn. */
const ZERO_STEP_BYTES = 64 * 1024 * 1024;

export interface VolumeOptions {
  readonly name: string;
  readonly blockSectors: number;
  /** Where its sector 0 is in the store. */
  readonly offsetSectors: number;
  readonly sizeSectors: number;
  /** Every change holds its range, in the store's sectors. */
  readonly locks: RangeLocks;
  readonly readOnly: boolean;
  readonly store: SectorStore;
}

/** Requests that use one store, so that its end can be waited for. */
class Users {
  readonly store: SectorStore;
  count = 0;
  readonly left: Signal = new Signal();

  constructor(store: SectorStore) {
    this.store = store;
  }

  async gone(): Promise<void> {
    while (this.count > 0) await this.left.wait();
  }
}

export class Volume implements BlockVolume {
  readonly name: string;
  readonly blockSizeBytes: number;
  readonly readOnly: boolean;
  #sizeBytes: number;
  #offset: number;
  #locks: RangeLocks;
  #users: Users;
  #stopped = false;
  /** Of the next request; see BlockVolume.describeNext. */
  #task = 0;
  #flags = 0;
  #flush: Shared;

  constructor(options: VolumeOptions) {
    this.name = options.name;
    this.#sizeBytes = options.sizeSectors * SECTOR;
    this.blockSizeBytes = options.blockSectors * SECTOR;
    this.readOnly = options.readOnly;
    this.#offset = options.offsetSectors;
    this.#locks = options.locks;
    this.#users = new Users(options.store);
    this.#flush = new Shared(() => this.#during((store) => this.#flushStore(store)));
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  /** Its length from now on; the caller sees to what lies behind the end. */
  resize(sizeSectors: number): void {
    this.#sizeBytes = sizeSectors * SECTOR;
  }

  get store(): SectorStore {
    return this.#users.store;
  }

  /**
   * From now on requests go to `store`. The caller holds every range, so no change is under way.
   * Resolves when the reads that use the old one are done.
   */
  replaceStore(store: SectorStore): Promise<void> {
    const old = this.#users;
    this.#users = new Users(store);
    return old.gone();
  }

  /** Refuses everything from now on. Resolves when no request is under way any more. */
  stop(): Promise<void> {
    this.#stopped = true;
    return this.#users.gone();
  }

  /** Runs a request, unless the volume is stopped; whoever stops it waits for its end. */
  async #during<T>(body: (store: SectorStore) => Promise<T>): Promise<T> {
    if (this.#stopped) {
      throw new BcacheError("Shutdown", `${this.name} is stopped`, { errno: ERRNO.ENODEV });
    }
    return await this.#using(body);
  }

  /** Runs `body` with the store as it is now; whoever exchanges it waits for its end. */
  async #using<T>(body: (store: SectorStore) => Promise<T>): Promise<T> {
    const users = this.#users;
    users.count++;
    try {
      return await body(users.store);
    } finally {
      users.count--;
      if (users.count === 0) users.left.raise();
    }
  }

  #inside(offsetBytes: number, lengthBytes: number): void {
    if (offsetBytes < 0 || offsetBytes + lengthBytes > this.sizeBytes) {
      throw new BcacheError(
        "InvalidArgument",
        `${this.name}: bytes ${offsetBytes}-${offsetBytes + lengthBytes} are outside the device ` +
          `of ${this.sizeBytes} bytes`,
      );
    }
  }

  #serving(store: SectorStore): void {
    const { failure } = store;
    if (failure) throw failure;
  }

  #writable(store: SectorStore): void {
    this.#serving(store);
    if (this.readOnly) throw new BcacheError("ReadOnly", `${this.name} is read-only`);
  }

  describeNext(task: number, flags: number): void {
    this.#task = task;
    this.#flags = flags;
  }

  tryRead(offsetBytes: number, into: Uint8Array): boolean {
    const { store } = this.#users;
    if (this.#stopped || store.obstructed) return false;
    if (((offsetBytes | into.length) & (SECTOR - 1)) !== 0 || into.length === 0) return false;
    if (offsetBytes + into.length > this.#sizeBytes) return false;
    store.noteRequest(this.#task, this.#flags);
    return store.tryRead(this.#offset + offsetBytes / SECTOR, into);
  }

  read(offsetBytes: number, into: Uint8Array): Promise<void> {
    return this.#during((store) => this.#read(store, offsetBytes, into));
  }

  async #read(store: SectorStore, offsetBytes: number, into: Uint8Array): Promise<void> {
    this.#inside(offsetBytes, into.length);
    store.noteRequest(this.#task, this.#flags);
    this.#serving(store);
    if (into.length === 0) return;
    // Whole blocks: only these can be cached, so a reader of smaller ones gets its neighbours too.
    const { start, end } = this.#blocks(offsetBytes, into.length);
    const at = this.#offset + start;
    if ((end - start) * SECTOR === into.length) return await store.read(at, into);
    const whole = new Uint8Array((end - start) * SECTOR);
    await store.read(at, whole);
    const skip = offsetBytes - start * SECTOR;
    into.set(whole.subarray(skip, skip + into.length));
  }

  tryWrite(offsetBytes: number, from: Uint8Array): boolean {
    const { store } = this.#users;
    if (this.readOnly || this.#stopped || store.obstructed) return false;
    const block = this.blockSizeBytes - 1;
    if (((offsetBytes | from.length) & block) !== 0 || from.length === 0) return false;
    if (offsetBytes + from.length > this.#sizeBytes) return false;
    store.noteRequest(this.#task, this.#flags);
    return store.tryWrite(this.#offset + offsetBytes / SECTOR, from);
  }

  write(offsetBytes: number, from: Uint8Array): Promise<void> {
    return this.#during(() => this.#write(offsetBytes, from));
  }

  async #write(offsetBytes: number, from: Uint8Array): Promise<void> {
    this.#writable(this.store);
    this.#inside(offsetBytes, from.length);
    if (from.length === 0) return;
    const { start, end } = this.#blocks(offsetBytes, from.length);
    const bytes = (end - start) * SECTOR;
    const at = this.#offset + start;
    // await: the range may have to be waited for, and others ask meanwhile.
    const [task, flags] = [this.#task, this.#flags];
    await this.#holding(at, bytes / SECTOR, async (store) => {
      store.noteRequest(task, flags);
      if (bytes === from.length) return await store.writeLocked(at, from);
      const whole = new Uint8Array(bytes);
      const skip = offsetBytes - start * SECTOR;
      await this.#readEdges(store, at, whole, { from: skip, to: skip + from.length });
      whole.set(from, skip);
      await store.writeLocked(at, whole);
    });
  }

  /**
   * Runs a change with its range held. The store is asked for only then: it may have been
   * exchanged, and the size may have changed, while this waited.
   */
  async #holding(
    at: number,
    sectors: number,
    change: (store: SectorStore) => Promise<void>,
  ): Promise<void> {
    const range = await this.#locks.acquire(at, at + sectors);
    try {
      this.#inside((at - this.#offset) * SECTOR, sectors * SECTOR);
      await this.#using(change);
    } finally {
      this.#locks.release(range);
    }
  }

  /** The whole blocks around a range, in sectors; the last one may be cut short by the device. */
  #blocks(offsetBytes: number, lengthBytes: number): { start: number; end: number } {
    const block = this.blockSizeBytes;
    const sectors = block / SECTOR;
    return {
      start: Math.floor(offsetBytes / block) * sectors,
      end: Math.min(
        Math.ceil((offsetBytes + lengthBytes) / block) * sectors,
        this.sizeBytes / SECTOR,
      ),
    };
  }

  /** Reads the blocks of `whole`, at sector `at`, that [from, to) does not cover completely. */
  async #readEdges(
    store: SectorStore,
    at: number,
    whole: Uint8Array,
    covered: { from: number; to: number },
  ): Promise<void> {
    const block = this.blockSizeBytes;
    const headEnd = covered.from > 0 ? Math.min(block, whole.length) : 0;
    if (headEnd > 0) await store.read(at, whole.subarray(0, headEnd));
    const tailStart = Math.floor((whole.length - 1) / block) * block;
    if (covered.to < whole.length && tailStart >= headEnd) {
      await store.read(at + tailStart / SECTOR, whole.subarray(tailStart));
    }
  }

  flush(): Promise<void> {
    return this.#flush.run();
  }

  async #flushStore(store: SectorStore): Promise<void> {
    this.#serving(store);
    if (!this.readOnly) await store.flush();
  }

  zero(offsetBytes: number, lengthBytes: number): Promise<void> {
    return this.#during(() => this.#zero(offsetBytes, lengthBytes));
  }

  async #zero(offsetBytes: number, lengthBytes: number): Promise<void> {
    this.#writable(this.store);
    this.#inside(offsetBytes, lengthBytes);
    const block = this.blockSizeBytes;
    const end = offsetBytes + lengthBytes;
    let at = offsetBytes;
    if (at % block !== 0) {
      const edge = Math.min(Math.ceil(at / block) * block, end);
      await this.#write(at, new Uint8Array(edge - at));
      at = edge;
    }
    const wholeEnd = end === this.sizeBytes ? end : Math.floor(end / block) * block;
    while (at < wholeEnd) {
      const step = Math.min(ZERO_STEP_BYTES, wholeEnd - at);
      const start = this.#offset + at / SECTOR;
      await this.#holding(start, step / SECTOR, async (store) => {
        store.noteRequest(this.#task, this.#flags);
        await store.zeroLocked(start, step / SECTOR);
      });
      at += step;
    }
    if (at < end) await this.#write(at, new Uint8Array(end - at));
  }
}
