/** One deliberate breakage of the engine, and where the simulator is to look for it. */
import type { Structure } from "../../corruption/places.ts";
import type { FAULT_DISKS } from "../fault_plan.ts";
import type { RecipeName } from "../scenarios.ts";
import type { DiskOperation } from "../sim_faults.ts";

export interface Hunt {
  readonly scenario: RecipeName;
  /** Seeds 1 to so many; ends at the first that shows the breakage. */
  readonly seeds: number;
  /** Cuts the power at one moment in so many, or has one operation in so many fail. */
  readonly every: number;
  /** Errors of these operations instead of power cuts alone. */
  readonly fault?: `${(typeof FAULT_DISKS)[number]}:${DiskOperation}`;
}

export interface Mutation {
  /** What is broken, in words. */
  readonly name: string;
  readonly file: string;
  readonly text: string;
  readonly becomes: string;
  readonly hunts: readonly Hunt[];
  /** A structure that the table of damage (tests/corruption) has; tried after the hunts. */
  readonly damaged?: Structure;
  /** Among those that every run of the suite tries. */
  readonly quick?: boolean;
}

export const hunt = (scenario: RecipeName, seeds: number, every: number): Hunt => ({
  scenario,
  seeds,
  every,
});

/** Every one of these operations fails in its turn, and the power is cut then. */
export const faultHunt = (
  scenario: RecipeName,
  seeds: number,
  fault: NonNullable<Hunt["fault"]>,
): Hunt => ({ scenario, seeds, every: 1, fault });
