/** One deliberate breakage of the engine, and where the simulator is to look for it. */
import type { RecipeName } from "../scenarios.ts";

export interface Hunt {
  readonly scenario: RecipeName;
  /** Seeds 1 to so many; ends at the first that shows the breakage. */
  readonly seeds: number;
  /** Cuts the power at one moment in so many. */
  readonly every: number;
  /** What else the simulator's command is told: faults to inject instead of power cuts, say. */
  readonly options?: readonly string[];
}

export interface Mutation {
  /** What is broken, in words. */
  readonly name: string;
  readonly file: string;
  readonly text: string;
  readonly becomes: string;
  readonly hunts: readonly Hunt[];
  /** Among those that every run of the suite tries. */
  readonly quick?: boolean;
}

export const hunt = (scenario: RecipeName, seeds: number, every: number): Hunt => ({
  scenario,
  seeds,
  every,
});

/** Instead of cuts: one bit turns over of what is read, one read in so many, at a start. */
export const huntWithRot = (scenario: RecipeName, disk: "cache" | "backing", seeds: number) => ({
  ...hunt(scenario, seeds, 1),
  options: ["--fault", `${disk}:read`, "--kind", "rot", "--stage", "restart"],
});
