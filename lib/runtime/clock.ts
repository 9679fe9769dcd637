/** The real clock, for programs whose thread runs the runtime's own event loop. */
import type { Clock } from "../base/runtime.ts";

export class RealClock implements Clock {
  nowMs(): number {
    return performance.now();
  }

  wallSeconds(): number {
    return Math.floor(Date.now() / 1000);
  }

  sleep(delayMs: number, signal?: AbortSignal): Promise<void> {
    if (signal?.aborted) return Promise.resolve();
    return new Promise((resolve) => {
      const wake = (): void => {
        clearTimeout(timer);
        signal?.removeEventListener("abort", wake);
        resolve();
      };
      const timer = setTimeout(wake, delayMs);
      signal?.addEventListener("abort", wake);
    });
  }

  turn(): Promise<void> {
    return new Promise((resolve) => setImmediate(resolve));
  }
}
