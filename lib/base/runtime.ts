/**
 * The world outside, as interfaces. `lib/` never reaches for a clock, a timer or randomness of
 * its own: the composition root passes real ones (lib/runtime), the simulator passes its own.
 */

export interface Clock {
  /** Milliseconds since some fixed moment; never goes back. */
  nowMs(): number;
  /** Seconds since 1970, for the time fields on disk. */
  wallSeconds(): number;
  /** Resolves after `delayMs`, or at once when `signal` is or becomes aborted. Never rejects. */
  sleep(delayMs: number, signal?: AbortSignal): Promise<void>;
  /** Lets all other ready work run once, then resolves. */
  turn(): Promise<void>;
}

export interface Random {
  /** A uniform integer in [0, 2^32). */
  nextU32(): number;
}

/** Where the engine reports what a person should know. One line each, no trailing newline. */
export type LogLevel = "info" | "warning" | "error";
export type Log = (level: LogLevel, message: string) => void;
