/**
 * What a volume may answer. Per sector of 512 bytes the oracle keeps every version ever issued,
 * each with the moments it was issued, settled and made durable by an acknowledged flush. From
 * that follows what is allowed:
 * - a live read returns a version that no later write, settled before the read began, replaced;
 * - after a power cut, one that no later *durable* write replaced, and that had been issued.
 * "Later" means issued after the other one settled: writes under way together have no order.
 *
 * Time is a counter of the oracle's own. History is only appended to, so the answer for a past
 * moment (a crash point) can be asked for at any time afterwards.
 */
import { assert } from "../../lib/base/assert.ts";
import { SECTOR_BYTES } from "../../lib/device/device.ts";
import { describeSector, fillSector, sameBytes } from "./pattern.ts";

/** One write or zero, from issue to durability. */
export interface Write {
  readonly id: number;
  readonly zero: boolean;
  readonly fromBytes: number;
  readonly toBytes: number;
  readonly issuedAt: number;
  settledAt: number;
  durableAt: number;
  failed: boolean;
}

/** What one write made of one sector. */
interface Version {
  readonly write: Write;
  /** The content, where it does not follow from the write alone (a part of a sector). */
  readonly bytes: Uint8Array | undefined;
}

export interface Recovered {
  /** The oracle's time at which the power was cut. */
  readonly cutAt: number;
  readonly sector: number;
  readonly bytes: Uint8Array;
  /** Takes over the sectors checked: the oracle of the world after this recovery. */
  readonly after: Oracle;
  /**
   * What was read is from now on the only answer. Else what was written after it stays allowed,
   * too: it may show by itself, but nothing goes back to what is older than what was read, unless
   * the power is cut again.
   */
  readonly steadfast: boolean;
}

/** A volume answered what it must not. */
export class OracleMismatch extends Error {
  override name = "OracleMismatch";
}

export class Oracle {
  readonly seed: number;
  /** Asked of whole sectors that hold what they may not: true when a fault explains it. */
  excuse: ((actual: Uint8Array) => boolean) | undefined;
  #time = 0;
  #nextId = 1;
  #initial: Write;
  #history = new Map<number, Version[]>();
  /** When the reads that are under way began. */
  #reads = new Set<number>();
  #unflushed: Write[] = [];
  #scratch = new Uint8Array(SECTOR_BYTES);

  /** @param zeroed what nobody wrote yet reads as zeroes, not as version 0 */
  constructor(seed: number, zeroed = false) {
    this.seed = seed;
    this.#initial = settledWrite(0, zeroed);
  }

  /** For the time after a recovery: it has seen nothing yet. */
  successor(): Oracle {
    const successor = new Oracle(this.seed, this.#initial.zero);
    successor.excuse = this.excuse;
    return successor;
  }

  /** The moment now, to be asked about later. */
  get time(): number {
    return this.#time;
  }

  /** Counts sectors that were only read among those to be looked at after a power cut. */
  noteRead(fromBytes: number, lengthBytes: number): void {
    eachSector(fromBytes, lengthBytes, (sector) => this.#versions(sector));
  }

  /** The sectors that were ever written, or noted as read, in order. */
  touchedSectors(): number[] {
    return [...this.#history.keys()].sort((a, b) => a - b);
  }

  /** Content of a sector before anything was written: version 0. */
  fillInitial(sector: number, into: Uint8Array): void {
    fillSector(into, this.seed, sector, 0);
  }

  /** Issues a write and fills `into` with what is to be written at `fromBytes`. */
  beginWrite(fromBytes: number, into: Uint8Array): Write {
    const write = this.#issue(fromBytes, into.length, false);
    eachSector(fromBytes, into.length, (sector, inSector, offset, length) => {
      fillSector(this.#scratch, this.seed, sector, write.id);
      into.set(this.#scratch.subarray(inSector, inSector + length), offset);
    });
    return write;
  }

  beginZero(fromBytes: number, lengthBytes: number): Write {
    return this.#issue(fromBytes, lengthBytes, true);
  }

  /** The volume answered; a failed write may have happened or not, in parts. */
  settle(write: Write, failed = false): void {
    write.settledAt = ++this.#time;
    write.failed = failed;
    this.#unflushed.push(write);
  }

  /** Call before asking for a flush; give the result to `endFlush` when it was acknowledged. */
  beginFlush(): Write[] {
    this.#time++;
    return this.#unflushed.filter((write) => !write.failed);
  }

  endFlush(covered: Write[]): void {
    const now = ++this.#time;
    for (const write of covered) write.durableAt = Math.min(write.durableAt, now);
    this.#unflushed = this.#unflushed.filter((write) => !write.failed && write.durableAt > now);
  }

  /** A flush was refused: what was acknowledged and not flushed may be there for good, or not. */
  loseUnflushed(): void {
    for (const write of this.#unflushed) write.failed = true;
    this.#unflushed = [];
  }

  /** Call before asking for a read; give the result to `checkRead`. */
  beginRead(): number {
    const begunAt = ++this.#time;
    this.#reads.add(begunAt);
    return begunAt;
  }

  /** A read that failed returns nothing that could be checked. */
  endRead(begunAt: number): void {
    this.#reads.delete(begunAt);
  }

  /** @throws OracleMismatch when a read that began at `begunAt` may not return this now. */
  checkRead(begunAt: number, fromBytes: number, bytes: Uint8Array): void {
    this.#reads.delete(begunAt);
    eachSector(fromBytes, bytes.length, (sector, inSector, offset, length) => {
      const actual = bytes.subarray(offset, offset + length);
      const allowed = this.#allowed(sector, this.#time, (write) => write.settledAt <= begunAt);
      if (this.#match(allowed, sector, inSector, actual) !== undefined) return;
      if (this.excuse?.(actual)) return;
      this.#mismatch("read", sector, actual, allowed);
    });
  }

  /** Checks what whole sectors read back as after a power cut. @throws OracleMismatch */
  checkRecovered(recovered: Recovered): void {
    const { bytes, cutAt, after } = recovered;
    after.#nextId = Math.max(after.#nextId, this.#nextId);
    for (let at = 0; at < bytes.length; at += SECTOR_BYTES) {
      const sector = recovered.sector + at / SECTOR_BYTES;
      const actual = bytes.subarray(at, at + SECTOR_BYTES);
      const allowed = this.#allowed(sector, cutAt, (write) => write.durableAt <= cutAt);
      const found = this.#match(allowed, sector, 0, actual);
      if (found === undefined) {
        if (this.excuse?.(actual)) continue;
        return this.#mismatch("after recovery", sector, actual, allowed);
      }
      if (!this.#history.has(sector)) continue;
      if (recovered.steadfast) after.#adopt(sector, [found]);
      else after.#adopt(sector, ...this.#dividedBy(actual, allowed, sector));
    }
  }

  /** The oracle of the time after a power cut at `cutAt`: all that may be there then. */
  afterCut(cutAt: number): Oracle {
    const after = this.successor();
    after.#nextId = this.#nextId;
    for (const sector of this.#history.keys()) {
      after.#adopt(sector, this.#allowed(sector, cutAt, (write) => write.durableAt <= cutAt));
    }
    return after;
  }

  /**
   * These versions of a sector, and no others, are there since before the beginning.
   * @param older only the next power cut brings them back
   */
  #adopt(sector: number, versions: readonly Version[], older: readonly Version[] = []): void {
    const adopted = (replaced: boolean) => ({ write: { id, zero }, bytes }: Version) => ({
      write: settledWrite(id, zero, replaced),
      bytes,
    });
    this.#history.set(sector, [...older.map(adopted(true)), ...versions.map(adopted(false))]);
  }

  /** Forgets what no crash point from now on can bring back, and no read that is under way. */
  prune(): void {
    const horizon = Math.min(this.#time, ...this.#reads);
    for (const [sector, versions] of this.#history) {
      if (versions.length === 1) continue;
      const now = this.#time;
      this.#history.set(sector, this.#allowed(sector, now, (write) => write.durableAt <= horizon));
    }
  }

  #issue(fromBytes: number, lengthBytes: number, zero: boolean): Write {
    const write: Write = {
      id: this.#nextId++,
      zero,
      fromBytes,
      toBytes: fromBytes + lengthBytes,
      issuedAt: ++this.#time,
      settledAt: Infinity,
      durableAt: Infinity,
      failed: false,
    };
    eachSector(fromBytes, lengthBytes, (sector, inSector, _offset, length) => {
      const versions = this.#versions(sector);
      if (length === SECTOR_BYTES) versions.push({ write, bytes: undefined });
      else versions.push(...this.#partial(sector, inSector, length, write));
    });
    return write;
  }

  /** One version for each content the rest of the sector may have. */
  #partial(sector: number, inSector: number, length: number, write: Write): Version[] {
    const bases = this.#allowed(sector, write.issuedAt, (other) => other.settledAt <= this.#time)
      .filter((version) => version.write !== write);
    for (const base of bases) {
      const settled = base.write.settledAt < write.issuedAt;
      assert(settled, "a write to a part of a sector runs beside no other write to that sector");
    }
    return bases.map((base) => {
      const bytes = this.#content(base, sector).slice();
      const fresh = new Uint8Array(SECTOR_BYTES);
      if (!write.zero) fillSector(fresh, this.seed, sector, write.id);
      bytes.set(fresh.subarray(inSector, inSector + length), inSector);
      return { write, bytes };
    });
  }

  #versions(sector: number): Version[] {
    let versions = this.#history.get(sector);
    if (versions === undefined) {
      versions = [{ write: this.#initial, bytes: undefined }];
      this.#history.set(sector, versions);
    }
    return versions;
  }

  /** The versions issued by `at` that no write for which `counts` holds replaced. */
  #allowed(sector: number, at: number, counts: (write: Write) => boolean): Version[] {
    const versions = this.#history.get(sector);
    if (versions === undefined) return [{ write: this.#initial, bytes: undefined }];
    let replacedBefore = -Infinity; // The latest issue of a write that counts.
    for (const { write } of versions) {
      if (!write.failed && write.issuedAt > replacedBefore && counts(write)) {
        replacedBefore = write.issuedAt;
      }
    }
    return versions.filter(({ write }) =>
      write.issuedAt <= at && !(write.settledAt < replacedBefore)
    );
  }

  #match(
    allowed: Version[],
    sector: number,
    inSector: number,
    actual: Uint8Array,
  ): Version | undefined {
    for (let at = allowed.length - 1; at >= 0; at--) {
      if (sameBytes(actual, this.#content(allowed[at]!, sector), inSector)) return allowed[at];
    }
    return undefined;
  }

  /** First those that may follow what was read, then those that it replaced for certain. */
  #dividedBy(actual: Uint8Array, allowed: Version[], sector: number): [Version[], Version[]] {
    // Of several versions with these bytes (zeroes) any may be what was read.
    const readIssuedAt = Math.min(
      ...allowed.filter((version) => sameBytes(actual, this.#content(version, sector)))
        .map(({ write }) => write.issuedAt),
    );
    const isOlder = ({ write }: Version) => write.settledAt < readIssuedAt;
    return [allowed.filter((version) => !isOlder(version)), allowed.filter(isOlder)];
  }

  /** Valid until the next call. */
  #content(version: Version, sector: number): Uint8Array {
    if (version.bytes !== undefined) return version.bytes;
    if (version.write.zero) this.#scratch.fill(0);
    else fillSector(this.#scratch, this.seed, sector, version.write.id);
    return this.#scratch;
  }

  #mismatch(when: string, sector: number, actual: Uint8Array, allowed: Version[]): never {
    const may = allowed.map(({ write }) => describeWrite(write)).join(", ");
    const all = this.#versions(sector).map(({ write }) => describeWrite(write)).join(", ");
    throw new OracleMismatch(
      `sector ${sector} ${when}: found ${describeSector(actual)}; allowed ${may}; issued ${all}`,
    );
  }
}

/**
 * A write that was over before the oracle's time began.
 * @param replaced by those that are not, although these need not be durable
 */
function settledWrite(id: number, zero: boolean, replaced = false): Write {
  const times = replaced
    ? { issuedAt: -4, settledAt: -3, durableAt: -3 }
    : { issuedAt: -2, settledAt: -1, durableAt: Infinity };
  return { id, zero, fromBytes: 0, toBytes: 0, failed: false, ...times };
}

function describeWrite(write: Write): string {
  const state = write.failed
    ? "failed"
    : write.durableAt < Infinity
    ? "flushed"
    : write.settledAt < Infinity
    ? "acknowledged"
    : "issued";
  return `${write.id}${write.zero ? " zero" : ""} (${state})`;
}

function eachSector(
  fromBytes: number,
  lengthBytes: number,
  visit: (sector: number, inSector: number, offset: number, length: number) => void,
): void {
  for (let offset = 0; offset < lengthBytes;) {
    const sector = Math.floor((fromBytes + offset) / SECTOR_BYTES);
    const inSector = (fromBytes + offset) % SECTOR_BYTES;
    const length = Math.min(SECTOR_BYTES - inSector, lengthBytes - offset);
    visit(sector, inSector, offset, length);
    offset += length;
  }
}
