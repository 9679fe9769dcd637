/**
 * The cache device as the engine writes it: a flush of it is also a flush of every backing device
 * that took foreground writes since its last one.
 *
 * Why: a key that says "clean" or "nothing cached here" is a statement about the backing device.
 * If such a key became durable before the backing write it stands for, a power cut could leave a
 * cache that answers with what the backing device has lost, until it drops that and an older
 * version comes back. So whatever flushes before it writes keys (journal entries, leaves) flushes
 * both. Linux flushes the cache device alone.
 *
 * A backing device that cannot be flushed concerns itself alone: the flush goes on without it. It
 * has then told its engine not to trust it (DistrustedInodes), before this resolves, and whoever
 * writes keys leaves out what only its flush would have made true.
 *
 * When the cache device itself fails a flush, or a write with FUA, which may be one to it, no later
 * one succeeds: what was to become stable may be lost, and the operating system tells of that once.
 * A node whose write goes on while the journal meets the error would else get keys to lost data.
 */
import type { WriteOptions } from "../../device/device.ts";
import { ForwardingDevice } from "../../device/forwarding.ts";
import { allEnded, Shared } from "../../base/sync.ts";

/** A backing device with writes that keys may come to speak about. */
export interface Dependent {
  /** Whether a completed write is not known to be stable, and keys may rely on it. */
  readonly wantsFlush: boolean;
  /**
   * Makes every write that completed before the call stable, or sees to it that no key relies on
   * that. Never rejects.
   */
  settleWrites(): Promise<void>;
}

export class OrderedDevice extends ForwardingDevice {
  #dependents = new Set<Dependent>();
  #flush: Shared = new Shared(() => this.#flushAll());
  #firstFailure: { readonly error: unknown } | undefined;

  add(dependent: Dependent): void {
    this.#dependents.add(dependent);
  }

  remove(dependent: Dependent): void {
    this.#dependents.delete(dependent);
  }

  override async write(
    atSector: number,
    from: Uint8Array,
    options: WriteOptions = {},
  ): Promise<void> {
    if (options.preflush) await this.flush();
    if (options.fua) await this.#settle(() => this.inner.write(atSector, from, { fua: true }));
    else await this.inner.write(atSector, from);
  }

  override flush(): Promise<void> {
    return this.#flush.run();
  }

  async #flushAll(): Promise<void> {
    const flushes = [this.#settle(() => this.inner.flush())];
    for (const dependent of this.#dependents) {
      if (dependent.wantsFlush) flushes.push(dependent.settleWrites());
    }
    await allEnded(flushes);
  }

  /** Makes something stable, unless that has failed before or fails for somebody meanwhile. */
  async #settle(work: () => Promise<void>): Promise<void> {
    this.#refuseAfterFailure();
    try {
      await work();
    } catch (error) {
      this.#firstFailure ??= { error };
      throw error;
    }
    this.#refuseAfterFailure();
  }

  #refuseAfterFailure(): void {
    if (this.#firstFailure !== undefined) throw this.#firstFailure.error;
  }
}
