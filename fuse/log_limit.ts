/**
 * A log that cannot be flooded: a device that fails every request would otherwise fill the memory
 * with messages faster than anybody reads them.
 */
import type { Log } from "../lib/base/runtime.ts";

/** This many at once, and so many a second in the long run. */
const MESSAGES_MOST = 50;
const MESSAGES_PER_SECOND = 10;

/** Passes messages on to `log`, and tells how many it left out when there is room again. */
export function limitLog(log: Log, nowMs: () => number): Log {
  let room = MESSAGES_MOST;
  let lastMs = nowMs();
  let leftOut = 0;
  return (level, message) => {
    const now = nowMs();
    room = Math.min(MESSAGES_MOST, room + (now - lastMs) * MESSAGES_PER_SECOND / 1000);
    lastMs = now;
    if (room < 1) {
      leftOut++;
      return;
    }
    room--;
    if (leftOut > 0) {
      log("warning", `${leftOut} messages were left out: there were too many`);
      leftOut = 0;
    }
    log(level, message);
  };
}
