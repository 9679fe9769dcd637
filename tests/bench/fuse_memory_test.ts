/** The benchmark of the data plane still runs, with tiny parameters. */
import { test } from "bun:test";
import { assertGreater } from "@std/assert";
import { READ_4K, sessionNanoseconds, WRITE_4K } from "./fuse_memory.ts";

test("the session's benchmark measures reads and writes", () => {
  assertGreater(sessionNanoseconds(READ_4K, 1000), 0);
  assertGreater(sessionNanoseconds(WRITE_4K, 1000), 0);
});
