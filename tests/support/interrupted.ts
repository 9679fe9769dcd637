/**
 * What is to be cleaned up when a command is interrupted: by Ctrl-C, by SIGTERM, or because its
 * terminal goes away, alike.
 */
// deno-lint-ignore-file no-console
import { constants } from "node:os";
import process from "node:process";

type CleanUp = () => void | Promise<void>;

const SIGNALS = ["SIGHUP", "SIGINT", "SIGTERM"] as const;
const cleanUps: CleanUp[] = [];
let ending = false;

/** Once more is once too often: npm passes on the signal that the terminal sent to all. */
async function end(signal: (typeof SIGNALS)[number]): Promise<void> {
  if (ending) return;
  ending = true;
  for (const cleanUp of [...cleanUps].reverse()) {
    try {
      await cleanUp();
    } catch (error) {
      console.error(error instanceof Error ? error.message : String(error));
    }
  }
  process.exit(128 + constants.signals[signal]);
}

const listeners = SIGNALS.map((signal) => [signal, () => void end(signal)] as const);

/**
 * Has `cleanUp` run when a signal ends the process, before what was registered earlier. Returns
 * what takes that back; without any registered, signals do what they do by default.
 */
export function whenInterrupted(cleanUp: CleanUp): () => void {
  if (cleanUps.length === 0) {
    for (const [signal, listener] of listeners) process.on(signal, listener);
  }
  cleanUps.push(cleanUp);
  return () => {
    const at = cleanUps.indexOf(cleanUp);
    if (ending || at < 0) return;
    cleanUps.splice(at, 1);
    if (cleanUps.length > 0) return;
    for (const [signal, listener] of listeners) process.off(signal, listener);
  };
}

/** Never returns while a signal ends the process: nothing new is begun, nothing is said of it. */
export async function notWhileEnding(): Promise<void> {
  if (ending) await new Promise(() => {});
}
