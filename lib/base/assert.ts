/**
 * Assertions that stay on in production. A failed one is a bug in this program, never bad input:
 * bad input is a {@link BcacheError} (errors.ts).
 */

export class AssertionError extends Error {
  override name = "AssertionError";
}

/** Throws AssertionError when `condition` is false. One fact per call. */
export function assert(condition: boolean, fact: string): asserts condition {
  if (!condition) throw new AssertionError(`assertion failed: ${fact}`);
}

/** Marks the end of an exhaustive switch; the compiler proves it is never reached. */
export function unreachable(value: never): never {
  throw new AssertionError(`unreachable: ${String(value)}`);
}
