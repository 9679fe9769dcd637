/** `bun:test` under Deno: the few names the suite uses, over node:test. */
import { after, afterEach, before, beforeEach, describe, it } from "node:test";

export { afterEach, beforeEach, describe };
export const beforeAll = before;
export const afterAll = after;

type Body = () => void | Promise<void>;

/** The timeout of `bun:test` is its third argument; node:test takes it in an options object. */
export function test(name: string, body: Body, timeoutMs?: number): void {
  void it(name, timeoutMs === undefined ? {} : { timeout: timeoutMs }, body);
}
export { test as it };
