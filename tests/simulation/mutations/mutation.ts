/** One deliberate breakage of the engine, and where the simulator is to look for it. */
import type { Structure } from "../../corruption/places.ts";
import type { RecipeName } from "../scenarios.ts";

export interface Hunt {
  readonly scenario: RecipeName;
  /** Seeds 1 to so many; ends at the first that shows the breakage. */
  readonly seeds: number;
  /** Cuts the power at one moment in so many. */
  readonly every: number;
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
