/**
 * What the rooms above see of the engine: `BlockVolume` for fuse, `CacheControl` for the API and
 * the command line. Both planes speak only these.
 */

/** Somebody waits for the write, more than for others (O_SYNC). */
export const REQUEST_SYNC = 1;
/** Nobody has asked for it yet. */
export const REQUEST_READAHEAD = 2;
/** It is metadata of a file system. */
export const REQUEST_METADATA = 4;

/** One cached device (or flash-only volume), as a range of bytes. */
export interface BlockVolume {
  /** The name of its file: `bcache0`, ... */
  readonly name: string;
  readonly sizeBytes: number;
  /** The block size of the device: 512 to 4096. Any offset and length is accepted all the same. */
  readonly blockSizeBytes: number;
  readonly readOnly: boolean;

  /**
   * Says who asks for the next read or write, and how; where nobody says, it is nobody, and
   * nothing special. The hit path.
   * @param task a number that is the same for the same task: streams are told apart by it
   * @param flags REQUEST_SYNC and others below
   */
  describeNext?(task: number, flags: number): void;

  /**
   * Fills `into` if that needs no waiting. False: nothing happened (the bytes of `into` are then
   * undefined); call `read`. The hit path: no allocation, no promise.
   */
  tryRead(offsetBytes: number, into: Uint8Array): boolean;
  /**
   * Fills `into` completely. Rejects with a BcacheError. `into` is the engine's until it settles.
   */
  read(offsetBytes: number, into: Uint8Array): Promise<void>;

  /** Takes `from` (it is not needed any more afterwards) if that needs no waiting; else false. */
  tryWrite(offsetBytes: number, from: Uint8Array): boolean;
  /**
   * Resolves when written, as into a disk with a volatile write cache. `from` is the engine's
   * until then.
   */
  write(offsetBytes: number, from: Uint8Array): Promise<void>;

  /** Everything acknowledged before the call survives a power cut once this resolves. */
  flush(): Promise<void>;
  /** Afterwards the range reads as zeroes, and space is given back where that can be done. */
  zero(offsetBytes: number, lengthBytes: number): Promise<void>;
}

export type CacheMode = "writethrough" | "writeback" | "writearound" | "none";
export const CACHE_MODES: readonly CacheMode[] = [
  "writethrough",
  "writeback",
  "writearound",
  "none",
];

export type DeviceState = "no cache" | "clean" | "dirty" | "inconsistent";

/**
 * How a device of a failed set is served: by its backing device; what is clean, by its backing
 * device; not at all.
 */
export type FailedManner = "pass through" | "clean ranges only" | "refused";

/** The counters of one period, bcache's names in camel case. */
export interface CacheStats {
  cacheHits: number;
  cacheMisses: number;
  cacheBypassHits: number;
  cacheBypassMisses: number;
  /** Percent, 0 when nothing was read. */
  cacheHitRatio: number;
  cacheMissCollisions: number;
  bypassedBytes: number;
}

export interface DeviceStatus {
  /** `bcache0`, ... */
  name: string;
  backingPath: string;
  /** False once it was detached: it is served without the cache. */
  attached: boolean;
  /** It is being detached: nothing becomes dirty any more, and what is, is written back. */
  detaching?: boolean;
  uuid: string;
  label: string;
  sizeBytes: number;
  blockSizeBytes: number;
  cacheMode: CacheMode;
  state: DeviceState;
  dirtyBytes: number;
  writeback: {
    running: boolean;
    percent: number;
    /** 0 while not running. */
    rateBytesPerSecond: number;
  };
  ioErrors: number;
  /** How many requests went past the cache, by why they did; only reasons there were. */
  bypassReasons?: Record<string, number>;
  /** The last error of the backing device since it was attached. */
  lastError?: string;
  /** Why every request is refused: its errors came to the limit, or a flush of it failed. */
  disabled?: string;
  /** What is still done for the device, once its set has failed. */
  service?: FailedManner;
  stats: CacheStats;
}

export interface SetStatus {
  setUuid: string;
  cachePath: string;
  sizeBytes: number;
  bucketSizeBytes: number;
  blockSizeBytes: number;
  bucketCount: number;
  replacementPolicy: "lru" | "fifo" | "random";
  /** Why the set serves nothing any more, if so. */
  failed?: string;
  /** What a person must do something about before the set ends, one line each. */
  warnings?: string[];
  /** The last error of the cache device, as far as the set has survived it. */
  lastError?: string;
  /**
   * Percent of buckets that hold something that cannot simply be dropped or was not yet collected.
   */
  inUsePercent: number;
  availablePercent: number;
  btree: { depth: number; nodes: number; cachedBytes: number };
  journal: { sequence: number; activeEntries: number };
  writtenBytes: number;
  btreeWrittenBytes: number;
  metadataWrittenBytes: number;
  ioErrors: number;
  uptimeSeconds: number;
  devices: DeviceStatus[];
  /** The volumes that live on the cache alone. */
  volumes: VolumeStatus[];
}

/** What a cache set leaves when it is closed. */
export interface SetRemains {
  /** Of all devices: they have it when they are mounted with their cache again. */
  dirtyBytes: number;
  /** Devices whose detach was under way: they are attached as before. */
  detachesBrokenOff: string[];
}

/** A volume that lives on the cache alone: a flash-only volume, as the kernel calls it. */
export interface VolumeStatus {
  /** `bcache0`, ...: cached devices and volumes share their names. */
  name: string;
  uuid: string;
  label: string;
  sizeBytes: number;
  blockSizeBytes: number;
  /** What was written of it: it takes that much of the cache. */
  usedBytes: number;
}

/** One device of the UUID table. */
export interface UuidStatus {
  uuid: string;
  label: string;
  kind: "cached" | "volume";
  /** Its name while it is served with the cache; null: it is not here. */
  device: string | null;
  dirtyBytes: number;
  /** What the index has of it, clean and dirty. */
  cachedBytes: number;
  /** Since 1970. */
  firstRegisteredSeconds: number;
  lastRegisteredSeconds: number;
}

/** One attribute as `get` and `set` show it, named as in the kernel's sysfs. */
export interface AttributeInfo {
  name: string;
  /** The value in the form `set` takes. */
  value: string;
  writable: boolean;
  help: string;
  /** Of a number. */
  unit?: string;
  /** What it takes, in words; of one that can be written. */
  range?: string;
  /** Its value after start, unless a superblock says otherwise; of one that can be written. */
  initial?: string;
  /** Where it is kept across restarts; absent: it is not. */
  kept?: string;
}

/**
 * Steers a running cache set. Values are plain JSON, so that an implementation may live on the
 * other side of a message channel. Every method rejects with a BcacheError.
 *
 * `device` is a device's name (`bcache0`); undefined means the cache set.
 */
export interface CacheControl {
  status(): Promise<SetStatus>;
  /** All attributes of the device, or of the set; or the one with that name. */
  attributes(device: string | undefined, name?: string): Promise<AttributeInfo[]>;
  /** Sets an attribute and returns it as it reads afterwards. */
  setAttribute(device: string | undefined, name: string, value: string): Promise<AttributeInfo>;
  /**
   * Writes all dirty data of the device (or of all) back, makes it durable, and resolves when the
   * device is clean. Its progress is the falling `dirtyBytes` of `status`.
   */
  flushDirty(device: string | undefined): Promise<void>;
  /**
   * Attaches the backing device at an absolute path, which then has a file of its own. Rejects
   * with nothing changed when it belongs elsewhere; `force` takes one that was made for another
   * set and never had a cache.
   */
  attach(backingPath: string, options?: { force?: boolean }): Promise<DeviceStatus>;
  /**
   * Writes all dirty data of the device back and takes it out of the set; it goes on without a
   * cache, as "no cache". Its progress is the falling `dirtyBytes` of `status`.
   */
  detach(device: string): Promise<DeviceStatus>;
  /**
   * Stops serving the device: its file disappears, its dirty data stays in the cache until it is
   * attached again. Rejects with Busy while somebody has the file open, unless `force`.
   */
  stop(device: string, options?: { force?: boolean }): Promise<void>;
  /** Makes a volume that lives on the cache alone. Space is taken as it is written. */
  createVolume(options: { sizeBytes: number; label?: string }): Promise<VolumeStatus>;
  /**
   * A larger volume gains zeroes. Of a smaller one what lies behind the end is given up: rejects
   * when there is data, or the file is open, unless `force`.
   */
  resizeVolume(
    name: string,
    sizeBytes: number,
    options?: { force?: boolean },
  ): Promise<VolumeStatus>;
  /** Gives up a volume and its data. Rejects when it has data or is open, unless `force`. */
  destroyVolume(name: string, options?: { force?: boolean }): Promise<void>;
  /** Whose data the cache has. Looks at the whole index. */
  uuids(): Promise<UuidStatus[]>;
  /**
   * Gives up all that is cached of a device that is not here. Rejects when some of it is dirty,
   * unless `force`.
   */
  forget(uuid: string, options?: { force?: boolean }): Promise<void>;
}
