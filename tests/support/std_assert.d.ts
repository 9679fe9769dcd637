/**
 * The types of the functions of `@std/assert` that the suite uses: the npm package that carries it
 * has none.
 */
declare module "@std/assert" {
  export function assert(value: unknown, message?: string): asserts value;
  export function assertEquals<T>(actual: T, expected: T, message?: string): void;
  export function assertNotEquals<T>(actual: T, expected: T, message?: string): void;
  export function assertStrictEquals<T>(
    actual: unknown,
    expected: T,
    message?: string,
  ): asserts actual is T;
  export function assertAlmostEquals(
    actual: number,
    expected: number,
    tolerance?: number,
    message?: string,
  ): void;
  export function assertGreater<T>(actual: T, expected: T, message?: string): void;
  export function assertGreaterOrEqual<T>(actual: T, expected: T, message?: string): void;
  export function assertLess<T>(actual: T, expected: T, message?: string): void;
  export function assertLessOrEqual<T>(actual: T, expected: T, message?: string): void;
  export function assertMatch(actual: string, expected: RegExp, message?: string): void;
  export function assertStringIncludes(actual: string, expected: string, message?: string): void;
  export function assertInstanceOf<T>(
    actual: unknown,
    type: abstract new (...args: never[]) => T,
    message?: string,
  ): asserts actual is T;
  export function assertThrows<E extends Error = Error>(
    body: () => unknown,
    type?: abstract new (...args: never[]) => E,
    includes?: string,
  ): E;
  export function assertRejects<E extends Error = Error>(
    body: () => PromiseLike<unknown>,
    type?: abstract new (...args: never[]) => E,
    includes?: string,
  ): Promise<E>;
  export function fail(message?: string): never;
}
