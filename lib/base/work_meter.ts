/**
 * Telling whoever asked for background work how long each step of it kept others waiting: a step
 * is what runs between two moments at which other work has its turn.
 */

export interface WorkMeter {
  /** How much work is done between two calls of `spend`, where it can be divided. */
  readonly stepUnits: number;
  /** A step begins now. */
  begin(): void;
  /** So much work (keys, buckets) was done in this step. True: the step has been long enough. */
  spend(units: number): boolean;
  /** The step is over. To be called before anything is waited for. */
  end(): void;
}

/** For work that nobody measures. */
export const NO_METER: WorkMeter = {
  stepUnits: Infinity,
  begin: () => {},
  spend: () => false,
  end: () => {},
};
