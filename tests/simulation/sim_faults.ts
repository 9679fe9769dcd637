/**
 * Faults of a simulated disk, as a list laid over it: add one, remove it, and the disk is well
 * again. What a fault does to an operation is done by the disk (sim_disk.ts):
 * - error: it fails with EIO or ENOSPC, once or for good; a part of a write may have happened;
 * - slow: it takes seconds, while all others go on;
 * - short: the medium does it in two parts with time in between, as whoever calls a kernel that
 *   transfers less than was asked for; a Device is never short to those above it;
 * - misdirected: a write lands elsewhere and is acknowledged, its own place keeps the old bytes;
 * - rot: one bit turns over, of what is read (on the medium, for good) or of what is written;
 * - lie: a flush, or a write with FUA, is acknowledged and makes nothing stable.
 */
import { BcacheError } from "../../lib/base/errors.ts";

export type DiskOperation = "read" | "write" | "flush" | "zero" | "discard";

export const FAULT_KINDS = ["error", "slow", "short", "misdirected", "rot", "lie"] as const;
export type FaultKind = (typeof FAULT_KINDS)[number];

export interface Fault {
  readonly operation: DiskOperation | "any";
  /** An error when absent. */
  readonly kind?: FaultKind;
  /** The first and the last sector it concerns; all of the disk when absent. */
  readonly fromSector?: number;
  readonly toSector?: number;
  /** Lets this many matching operations pass first. */
  readonly after?: number;
  /** Fails this many, then is spent; Infinity for good. One when absent. */
  readonly times?: number;
  /** Of an error; EIO when absent. */
  readonly errno?: "EIO" | "ENOSPC";
  /**
   * Of a flush that fails: no later one makes stable what it was to, although all is read back; as
   * Linux does with what a failed fsync could not write.
   */
  readonly loses?: boolean;
  /** Where a misdirected write lands; anywhere when absent. */
  readonly landsAt?: (atSector: number, sectors: number) => number;
}

/** What is done to one operation. */
export interface Injected {
  readonly kind: FaultKind;
  readonly fault: Fault;
  /** With which it fails, when it fails. */
  readonly error?: BcacheError;
}

interface Armed {
  readonly fault: Fault;
  skip: number;
  left: number;
}

/** What a fault left on the medium in silence: a sector that does not hold what it should. */
export interface Damage {
  readonly sector: number;
  readonly wanted: Uint8Array;
  readonly found: Uint8Array;
}

export class FaultList {
  #diskName: string;
  #armed: Armed[] = [];
  /** How many operations were met. */
  injected = 0;
  /** Sectors that became wrong without an error, in order. */
  readonly damage: Damage[] = [];

  constructor(diskName: string) {
    this.#diskName = diskName;
  }

  /** @returns removes the fault again. */
  add(fault: Fault): () => void {
    const armed = { fault, skip: fault.after ?? 0, left: fault.times ?? 1 };
    this.#armed.push(armed);
    return () => {
      this.#armed = this.#armed.filter((other) => other !== armed);
    };
  }

  clear(): void {
    this.#armed = [];
  }

  /** What happens to this operation, if anything. Flushes concern every sector. */
  take(operation: DiskOperation, atSector: number, sectors: number): Injected | undefined {
    for (const armed of this.#armed) {
      const { fault } = armed;
      if (armed.left <= 0 || !matches(fault, operation, atSector, sectors)) continue;
      if (armed.skip > 0) {
        armed.skip--;
        continue;
      }
      armed.left--;
      this.injected++;
      const kind = fault.kind ?? "error";
      if (kind !== "error") return { kind, fault };
      const where = operation === "flush" ? "" : ` of sectors ${atSector}+${sectors}`;
      const what = `${this.#diskName}: ${operation}${where} failed (injected)`;
      const error = new BcacheError(fault.errno === "ENOSPC" ? "NoSpace" : "DeviceIo", what);
      return { kind, fault, error };
    }
    return undefined;
  }

  /** Notes sectors that hold `found` from now on, but `wanted` on a disk that is well. */
  noteDamage(atSector: number, wanted: Uint8Array, found: Uint8Array): void {
    for (let at = 0; at < wanted.length; at += 512) {
      this.damage.push({
        sector: atSector + at / 512,
        wanted: wanted.slice(at, at + 512),
        found: found.slice(at, at + 512),
      });
    }
  }
}

function matches(fault: Fault, operation: DiskOperation, at: number, sectors: number): boolean {
  if (fault.operation !== "any" && fault.operation !== operation) return false;
  if (operation === "flush") return true;
  return at <= (fault.toSector ?? Infinity) && at + sectors > (fault.fromSector ?? 0);
}
