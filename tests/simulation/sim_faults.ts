/**
 * Faults of a simulated disk, as a list laid over it: add one, remove it, and the disk is well
 * again. The bytes below are never touched by the list itself.
 */
import { BcacheError } from "../../lib/base/errors.ts";

export type DiskOperation = "read" | "write" | "flush" | "zero" | "discard";

export interface Fault {
  readonly operation: DiskOperation | "any";
  /** The first and the last sector it concerns; all of the disk when absent. */
  readonly fromSector?: number;
  readonly toSector?: number;
  /** Lets this many matching operations pass first. */
  readonly after?: number;
  /** Fails this many, then is spent; Infinity for good. One when absent. */
  readonly times?: number;
  /** EIO when absent. */
  readonly errno?: "EIO" | "ENOSPC";
}

interface Armed {
  readonly fault: Fault;
  skip: number;
  left: number;
}

export class FaultList {
  #diskName: string;
  #armed: Armed[] = [];
  /** How many operations were failed. */
  injected = 0;

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

  /** The error this operation fails with, if it does. Flushes concern every sector. */
  take(operation: DiskOperation, atSector: number, sectors: number): BcacheError | undefined {
    for (const armed of this.#armed) {
      if (armed.left <= 0 || !matches(armed.fault, operation, atSector, sectors)) continue;
      if (armed.skip > 0) {
        armed.skip--;
        continue;
      }
      armed.left--;
      this.injected++;
      const where = operation === "flush" ? "" : ` of sectors ${atSector}+${sectors}`;
      const what = `${this.#diskName}: ${operation}${where} failed (injected)`;
      return armed.fault.errno === "ENOSPC"
        ? new BcacheError("NoSpace", what)
        : new BcacheError("DeviceIo", what);
    }
    return undefined;
  }
}

function matches(fault: Fault, operation: DiskOperation, at: number, sectors: number): boolean {
  if (fault.operation !== "any" && fault.operation !== operation) return false;
  if (operation === "flush") return true;
  return at <= (fault.toSector ?? Infinity) && at + sectors > (fault.fromSector ?? 0);
}
