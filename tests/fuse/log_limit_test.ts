import { test } from "bun:test";
import { assertEquals } from "@std/assert";
import { limitLog } from "../../fuse/log_limit.ts";

test("a flood of messages is cut off, and what was left out is counted", () => {
  let nowMs = 0;
  const passed: string[] = [];
  const log = limitLog((_level, message) => passed.push(message), () => nowMs);
  for (let count = 0; count < 1000; count++) log("error", `message ${count}`);
  assertEquals(passed.length, 50);
  nowMs = 100;
  log("error", "later");
  assertEquals(passed.slice(50), ["950 messages were left out: there were too many", "later"]);
  log("error", "too soon");
  assertEquals(passed.length, 52);
  nowMs = 60_000;
  for (let count = 0; count < 50; count++) log("info", "again");
  assertEquals(passed.length, 52 + 1 + 50);
});
