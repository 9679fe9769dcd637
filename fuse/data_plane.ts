/**
 * The loop of the data plane's thread: FUSE requests, timers, the engine's completions and the
 * control plane's messages, in one thread that blocks in one system call when there is nothing
 * to do.
 *
 * One round: take and answer all ready requests (a bounded batch), wake the timers that are due,
 * let the runtime's event loop run once, and begin again. A round that found nothing may wait:
 *  - while the engine has operations under way, their results come through the event loop, which
 *    cannot be waited for together with /dev/fuse; so the round spins for a moment, then waits in
 *    short steps which grow with the silence;
 *  - otherwise only a request, a timer or a message can bring work: it blocks for one of them.
 *    Messages are announced through `wakeFd`, an eventfd, once each, so that their number is known
 *    before the event loop delivers them.
 *
 * Blocking and being woken costs more than answering a cached read, so under load the loop looks
 * for the next request a little longer before it blocks: for as long as that lately paid.
 */
import { assert } from "../lib/base/assert.ts";
import type { Libc } from "../lib/runtime/libc.ts";
import { type Channel, ENDED } from "./channel.ts";
import { Poller } from "./channel_dev_fuse.ts";
import type { OperationCounter } from "../lib/device/counting.ts";
import type { DataPlaneClock } from "./data_plane_clock.ts";
import { MAX_TRANSFER_BYTES } from "./protocol.ts";
import type { FuseSession } from "./session.ts";
import type { Slot, SlotPool } from "./slot.ts";

/** Requests answered before the event loop gets its turn. */
const BATCH_REQUESTS = 64;
/** Looking for the next request instead of blocking: at most this long. */
const SPIN_MOST_MS = 0.06;
const SPIN_LEAST_MS = 0.004;
/** A request that came this soon after the loop blocked would have been met by spinning. */
const SOON_MS = 0.12;
/** Waiting while operations are under way: an eighth of the silence, within these bounds. */
const STEP_LEAST_MS = 0.02;
const STEP_MOST_MS = 0.5;
/**
 * The longest sleep with nothing to do. Opening and closing a set also do things that nobody
 * counts (a file is closed, a port answers): while no file system is attached the loop therefore
 * never sleeps longer than STEP_MOST_MS, and nothing missed can ever hold it up for longer than
 * this.
 */
const IDLE_MOST_MS = 1000;
/** Short steps must end on time: the usual slack of a thread's timers is 50 µs. */
const TIMER_SLACK_NS = 2000;

const FUSE_INDEX = 0;
const WAKE_INDEX = 1;

interface Attachment {
  readonly channel: Channel;
  readonly session: FuseSession;
  readonly pool: SlotPool;
  readonly onEnded: (error?: unknown) => void;
}

export interface DataPlaneOptions {
  readonly libc: Libc;
  readonly clock: DataPlaneClock;
  /** An eventfd to which one is added for each message sent to this thread. */
  readonly wakeFd: number;
}

export class DataPlane implements OperationCounter {
  readonly clock: DataPlaneClock;
  readonly #libc: Libc;
  readonly #poller: Poller;
  readonly #wakeFd: number;
  readonly #wakeCount = new Uint32Array(new ArrayBuffer(8));
  readonly #wakeCountBytes = new Uint8Array(this.#wakeCount.buffer);
  #attached: Attachment | undefined;
  #receiving: Slot | undefined;
  /** Operations of devices, of the control plane and of the worker itself under way. */
  #operations = 0;
  /** Messages announced and not yet delivered; delivery may come first, so it may be negative. */
  #expected = 0;
  /** Changes whenever something happened. */
  #progress = 0;
  #progressSeen = 0;
  #lastWorkMs = 0;
  #quiet = false;
  #spinMs = 0;
  #stopped: (() => void) | undefined;
  #running = false;
  #abandoned = false;

  constructor(options: DataPlaneOptions) {
    this.clock = options.clock;
    this.#libc = options.libc;
    this.#wakeFd = options.wakeFd;
    this.#poller = new Poller(options.libc, 2);
    this.#poller.watch(WAKE_INDEX, options.wakeFd);
  }

  /** Begins the loop; from now on timers of the clock fire, with or without a file system. */
  start(): void {
    assert(!this.#running, "the loop runs once");
    this.#running = true;
    this.#libc.setTimerSlackNs(TIMER_SLACK_NS);
    this.#libc.setIoFlusher();
    this.#round();
  }

  /** Ends the loop at once and for good, leaving all as it is: after an error nothing foresaw. */
  abandon(): void {
    this.#abandoned = true;
  }

  /** Ends the loop after the present round. */
  stop(): Promise<void> {
    return new Promise((resolve) => {
      this.#stopped = resolve;
      this.#progress++;
    });
  }

  /**
   * Serves requests of `channel`, until it ends (then calls `onEnded` once). Requests that still
   * wait for the engine then have nobody to answer.
   */
  attach(attachment: Attachment): void {
    assert(this.#attached === undefined, "one file system at a time");
    this.#attached = attachment;
    this.#progress++;
  }

  /** Ends the attached channel as if it had ended by itself. */
  detach(): void {
    if (this.#attached !== undefined) this.#endAttached(this.#attached);
  }

  begin(): void {
    this.#operations++;
    this.#progress++;
  }

  end(): void {
    assert(this.#operations > 0, "operations end once");
    this.#operations--;
    this.#progress++;
  }

  /** Keeps the loop from blocking until `work` has settled, and passes it on. */
  async track<T>(work: Promise<T>): Promise<T> {
    this.begin();
    try {
      return await work;
    } finally {
      this.end();
    }
  }

  /** A message that `wakeFd` announces was delivered. */
  noteMessage(): void {
    this.#expected--;
    this.#progress++;
  }

  #round = (): void => {
    if (this.#abandoned) return;
    const stopped = this.#stopped;
    if (stopped !== undefined) {
      this.#running = false;
      stopped();
      return;
    }
    // What the event loop did since the last round may have left more for it to do.
    const undisturbed = this.#quiet && this.#progress === this.#progressSeen;
    let handled = undisturbed ? this.#wait() : 0;
    handled += this.#drain(BATCH_REQUESTS);
    const fired = this.clock.fire();
    this.#quiet = handled + fired === 0 && this.#progress === this.#progressSeen;
    if (!this.#quiet) {
      this.#progressSeen = this.#progress;
      this.#lastWorkMs = performance.now();
    }
    setImmediate(this.#round);
  };

  /** Answers up to `most` requests that are ready. Returns how many. */
  #drain(most: number): number {
    const attached = this.#attached;
    if (attached === undefined) return 0;
    for (let handled = 0; handled < most; handled++) {
      const slot = this.#receivingSlot(attached);
      if (slot === undefined) return handled;
      let length;
      try {
        length = attached.channel.receive(slot);
      } catch (error) {
        this.#endAttached(attached, error);
        return handled;
      }
      if (length < 0) {
        if (length === ENDED) this.#endAttached(attached);
        return handled;
      }
      if (attached.session.handle(slot, length)) this.#receiving = undefined;
    }
    return most;
  }

  /** Undefined while so much waits for the engine that the kernel has to wait, too. */
  #receivingSlot(attached: Attachment): Slot | undefined {
    if (this.#receiving === undefined) {
      this.#receiving = attached.pool.tryTake(MAX_TRANSFER_BYTES);
    }
    return this.#receiving;
  }

  #endAttached(attached: Attachment, error?: unknown): void {
    this.#attached = undefined;
    if (this.#receiving !== undefined) attached.pool.give(this.#receiving);
    this.#receiving = undefined;
    this.#progress++;
    attached.onEnded(error);
  }

  /** Waits for work as described above. Returns the number of requests it answered on the way. */
  #wait(): number {
    const timerMs = this.clock.nextMs();
    if (timerMs <= 0) return 0;
    const nowMs = performance.now();
    const underWay = this.#operations + Math.max(0, this.#expected) +
      (this.#attached?.session.pending ?? 0);
    if (underWay > 0) {
      const silenceMs = nowMs - this.#lastWorkMs;
      if (silenceMs < SPIN_MOST_MS) return 0;
      this.#poll(Math.min(timerMs, STEP_MOST_MS, Math.max(STEP_LEAST_MS, silenceMs / 8)));
      return 0;
    }
    if (this.#spinMs > 0 && this.#attached !== undefined) {
      const handled = this.#spin(nowMs);
      if (handled > 0) return handled;
    }
    this.#poll(Math.min(timerMs, this.#attached === undefined ? STEP_MOST_MS : IDLE_MOST_MS));
    const waitedMs = performance.now() - nowMs;
    if (waitedMs < SOON_MS) this.#spinMs = SPIN_MOST_MS;
    else this.#spinMs = this.#spinMs < SPIN_LEAST_MS ? 0 : this.#spinMs / 2;
    return 0;
  }

  #spin(fromMs: number): number {
    const untilMs = fromMs + this.#spinMs;
    do {
      const handled = this.#drain(BATCH_REQUESTS);
      if (handled > 0) {
        this.#spinMs = SPIN_MOST_MS;
        return handled;
      }
      if (this.#attached === undefined) return 0;
    } while (performance.now() < untilMs);
    return 0;
  }

  #poll(timeoutMs: number): void {
    const attached = this.#attached;
    // Without a slot there is no use in knowing of requests.
    const taking = attached !== undefined && this.#receivingSlot(attached) !== undefined;
    this.#poller.watch(FUSE_INDEX, taking ? attached.channel.fd : -1);
    this.#poller.wait(timeoutMs);
    if (!this.#poller.ready(WAKE_INDEX)) return;
    const read = this.#libc.read(this.#wakeFd, this.#wakeCountBytes);
    if (read === 8) this.#expected += this.#wakeCount[0]!;
  }
}
