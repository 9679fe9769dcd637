/**
 * What a swarm run does, as data: the disks and their geometry, and a list of steps. The plan is a
 * function of the seed alone (make_plan.ts), and running it a function of the plan: any of its
 * steps can be left out, which is how a failing plan is made small (minimise.ts).
 *
 * Slots are what requests go to: first the cached devices, one for each backing disk, then places
 * for volumes that live on the cache alone. A step that means nothing where it is met (a request to
 * a volume that does not exist yet, say) does nothing.
 */
import type { CacheMode } from "../../../lib/cache/ports.ts";
import type { ReplacementPolicy } from "../../../lib/ondisk/superblock.ts";
import type { NamedCutPolicy } from "../power_cut.ts";
import type { Fault } from "../sim_faults.ts";

/** What never changes in a run, and is not made smaller. */
export interface SwarmMachine {
  readonly blockSectors: number;
  readonly bucketSectors: number;
  readonly bucketCount: number;
  readonly logicalBlockSectors: number;
  readonly replacement: ReplacementPolicy;
  readonly discard: boolean;
  /** Offers the synchronous device calls to the engine. */
  readonly sync: boolean;
  /** Requests under way at a time. */
  readonly lanes: number;
  readonly devices: readonly SwarmDevice[];
  /** Places for volumes on the cache alone. */
  readonly volumeSlots: number;
}

export interface SwarmDevice {
  readonly mode: CacheMode;
  readonly sectors: number;
}

/** After so many events, the power fails; so much of what is not stable is kept. */
export interface PowerCut {
  readonly events: number;
  readonly policy: NamedCutPolicy;
}

export type Step =
  /** The device of this slot is part of the set; all of these come first. */
  | { readonly op: "device"; readonly slot: number }
  | {
    readonly op: "write" | "read" | "zero";
    readonly slot: number;
    readonly fromBytes: number;
    readonly lengthBytes: number;
  }
  | { readonly op: "flush" | "drain" | "detach" | "attach" | "stop"; readonly slot: number }
  | { readonly op: "create" | "resize"; readonly slot: number; readonly sizeBytes: number }
  | { readonly op: "destroy"; readonly slot: number }
  | { readonly op: "sleep"; readonly ms: number }
  /** An attribute of the device in the slot; of the set without one. */
  | {
    readonly op: "set";
    readonly slot: number | undefined;
    readonly name: string;
    readonly value: string;
  }
  /** Disk 0 is the cache, the others are the backing disks. */
  | { readonly op: "fault"; readonly disk: number; readonly fault: Fault }
  /**
   * The power fails so many events after the last step before this one was begun, and then, during
   * the recoveries from that, as often as `recoveries` says.
   */
  | ({ readonly op: "cut"; readonly recoveries: readonly PowerCut[] } & PowerCut)
  /** A clean end, and a start without the devices of some slots. */
  | { readonly op: "restart"; readonly without: readonly number[] };

/** Steps that run beside each other, as opposed to those that end a life of the set. */
export type RunningStep = Exclude<Step, { op: "device" | "cut" | "restart" }>;

export interface SwarmPlan {
  readonly seed: number;
  readonly machine: SwarmMachine;
  readonly steps: readonly Step[];
}

/** One line about a step, for a person who looks at a failure. */
export function describeStep(step: Step): string {
  const { op, ...rest } = step;
  const facts = Object.entries(rest).map(([name, value]) => `${name} ${JSON.stringify(value)}`);
  return `${op} ${facts.join(", ")}`;
}
