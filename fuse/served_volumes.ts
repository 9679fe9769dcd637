/**
 * The volumes of the engine as the mounted directory shows them, kept alike while they come and
 * go; and the refusal to take a file away from who has it open.
 */
import { BcacheError } from "../lib/base/errors.ts";
import type { Clock } from "../lib/base/runtime.ts";
import { Signal } from "../lib/base/sync.ts";
import type { BlockVolume } from "../lib/cache/ports.ts";
import type { Engine } from "./engine.ts";
import type { Filesystem } from "./filesystem.ts";
import type { ControlCall, ControlMethod, FromWorker, VolumeInfo } from "./messages.ts";

/** The kernel tells of a close a little after close(2) has returned. */
const RELEASE_PATIENCE_MS = 250;
const RELEASE_STEP_MS = 5;

/** Their first argument is a device's name, the second may have `force`. */
export const TAKES_FILE_AWAY: readonly ControlMethod[] = ["stop"];

/** What such a call is refused with; the other thread then finds out by whom it is open. */
export function openRefusal(device: string): string {
  return `${device}: is open`;
}

export function volumeInfo({ name, sizeBytes }: BlockVolume): VolumeInfo {
  return { name, sizeBytes };
}

export class ServedVolumes {
  #clock: Clock;
  #post: (message: FromWorker) => void;
  #engine: Engine | undefined;
  #filesystem: Filesystem | undefined;
  #untold = 0;
  #toldSignal = new Signal();

  constructor(clock: Clock, post: (message: FromWorker) => void) {
    this.#clock = clock;
    this.#post = post;
  }

  /** From now on `filesystem` shows what `engine` has. */
  serve(engine: Engine, filesystem: Filesystem): void {
    this.#engine = engine;
    this.#filesystem = filesystem;
  }

  /** The engine's volumes changed. */
  refresh(): void {
    if (this.#engine === undefined || this.#filesystem === undefined) return;
    const change = this.#filesystem.update(this.#engine.volumes);
    this.#untold++;
    this.#post({ type: "volumes", volumes: this.#engine.volumes.map(volumeInfo), change });
  }

  /** The kernel knows of one more change. */
  noteTold(): void {
    this.#untold--;
    this.#toldSignal.raise();
  }

  /** Resolves when the kernel knows of all changes so far. */
  async told(): Promise<void> {
    while (this.#untold > 0) await this.#toldSignal.wait();
  }

  /** Rejects with Busy when `call` takes a file away that somebody has open, unless by force. */
  async refuseBusy(call: ControlCall): Promise<void> {
    if (!TAKES_FILE_AWAY.includes(call.method)) return;
    const [name, options] = call.args as [string, { force?: boolean } | undefined];
    if (options?.force === true) return;
    for (let waitedMs = 0; waitedMs < RELEASE_PATIENCE_MS; waitedMs += RELEASE_STEP_MS) {
      if ((this.#filesystem?.opens(name) ?? 0) === 0) return;
      await this.#clock.sleep(RELEASE_STEP_MS);
    }
    throw new BcacheError("Busy", openRefusal(name));
  }
}
