/** The micro benchmark measures every part, with tiny sizes; what was promised holds even then. */
import { test } from "bun:test";
import { assert, assertEquals } from "@std/assert";
import { micro, MICRO_QUICK, type MicroResult } from "./micro.ts";

test("the micro benchmark measures lookups, inserts, merges, journal and start-up", async () => {
  const results: MicroResult[] = [];
  await micro(MICRO_QUICK, (result) => results.push(result));
  const words = results.map((result) => result.what).join("\n");
  for (const part of ["lookups", "merges", "full sorts", "inserts", "collection", "journal"]) {
    assert(words.includes(part), part);
  }
  assertEquals(results.filter((result) => result.what.startsWith("start of")).length, 2);
  for (const { what, value } of results) {
    assert(/[1-9]/.test(value) || what.includes("state"), what);
  }
}, 60_000);
