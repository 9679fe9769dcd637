/**
 * The devices and volumes of one running cache set as the slots of a plan, and what is done to
 * them while requests run: detached, stopped, attached, made, resized, destroyed.
 */
import { BcacheError } from "../../../lib/base/errors.ts";
import type { CacheSet } from "../../../lib/cache/cache_set.ts";
import type { BlockVolume } from "../../../lib/cache/ports.ts";
import { Oracle } from "../oracle.ts";
import { hashOf } from "../sim_random.ts";
import type { SwarmPlan } from "./plan.ts";
import { Slot } from "./slot.ts";

/** What is known of a volume on the cache alone. */
interface VolumeFate {
  /** Names it across restarts. */
  readonly label: string;
  /** Of these one is right; two while it changes. */
  sizes: readonly number[];
  /** The power may fail while it is made or destroyed: it may be there then, or not. */
  state: "being made" | "there" | "being destroyed";
}

/** Refusals that a membership step may meet: another one was there first. */
const IN_TURN = new Set(["Busy", "NotFound", "Shutdown", "InvalidArgument", "WrongState"]);

/** Content of a cached device before anything is written; another for each slot. */
export function contentSeed(seed: number, slot: number): number {
  return hashOf(seed, slot, 51);
}

export class SwarmMembers {
  readonly slots: readonly Slot[];
  readonly devices: number;
  /** Slots whose device is part of the set at all. */
  readonly included = new Set<number>();
  #seed: number;
  #set: CacheSet | undefined;
  #fates = new Map<number, VolumeFate>();
  /** Slots that are stopped or attached right now. */
  #moving = new Set<number>();
  #made = 0;

  constructor({ seed, machine }: SwarmPlan) {
    this.#seed = seed;
    this.devices = machine.devices.length;
    const count = this.devices + machine.volumeSlots;
    this.slots = Array.from({ length: count }, (_, number) => {
      const cached = number < this.devices;
      return new Slot(number, {
        name: cached ? `device ${number}` : `volume ${number}`,
        oracle: new Oracle(contentSeed(seed, number), !cached),
        mayBeFull: !cached,
      });
    });
  }

  /** The cached devices there are in the plan. */
  get cachedSlots(): Slot[] {
    return this.slots.filter(({ number }) => this.included.has(number));
  }

  get #running(): CacheSet {
    if (this.#set === undefined) throw new Error("no set is running");
    return this.#set;
  }

  /** Nothing is served any more. */
  leave(): void {
    this.#set = undefined;
    this.#moving.clear();
    for (const slot of this.slots) {
      slot.volume = undefined;
      slot.forgetRequests();
      slot.leaving = false;
    }
  }

  /** Finds each slot's volume in a set that just started. @throws when one is missing or extra */
  async meet(set: CacheSet): Promise<void> {
    this.#set = set;
    const { devices, volumes } = await set.status();
    for (const { name, backingPath } of devices) {
      this.slots[slotOfPath(backingPath)]!.volume = find(set, name);
    }
    const unmet = new Map(this.#fates);
    for (const { name, label, sizeBytes } of volumes) {
      const [number, fate] = [...unmet].find(([, fate]) => fate.label === label) ?? [];
      if (number === undefined || fate === undefined) {
        throw new Error(`volume "${label}" is there, which should not be`);
      }
      if (!fate.sizes.includes(sizeBytes)) {
        const may = fate.sizes.join(" or ");
        throw new Error(`volume "${label}" has ${sizeBytes} bytes, expected ${may}`);
      }
      unmet.delete(number);
      fate.sizes = [sizeBytes];
      fate.state = "there";
      this.slots[number]!.volume = find(set, name);
    }
    for (const [number, { label, state }] of unmet) {
      if (state === "there") throw new Error(`volume "${label}" is gone`);
      this.#fates.delete(number);
    }
  }

  async detach(slot: Slot): Promise<void> {
    const { volume } = slot;
    if (volume === undefined) return;
    await this.#inTurn(slot, async () => void await this.#running.detach(volume.name));
  }

  async stop(slot: Slot): Promise<void> {
    const { volume, number } = slot;
    if (volume === undefined || this.#moving.has(number)) return;
    await this.#moved(slot, async () => {
      const stopping = this.#running.stop(volume.name);
      await this.#inTurn(slot, async () => {
        await stopping;
        slot.volume = undefined;
      });
    });
  }

  /** Attaches what is not there, and anew what is there without the cache. */
  async attach(slot: Slot): Promise<void> {
    const { number } = slot;
    if (this.#moving.has(number) || !this.included.has(number)) return;
    const { devices } = await this.#running.status();
    const found = devices.find(({ backingPath }) => slotOfPath(backingPath) === number);
    if (found?.attached) return;
    if (found !== undefined) await this.stop(slot);
    if (slot.volume !== undefined || this.#moving.has(number)) return;
    await this.#moved(slot, () =>
      this.#inTurn(slot, async () => {
        const { name } = await this.#running.attach(pathOfSlot(number));
        slot.volume = find(this.#running, name);
      }));
  }

  async drain(slot: Slot): Promise<void> {
    const { volume } = slot;
    if (volume === undefined) return;
    await this.#inTurn(slot, () => this.#running.flushDirty(volume.name));
  }

  async create(slot: Slot, sizeBytes: number): Promise<void> {
    const { number } = slot;
    if (this.#fates.has(number)) return;
    const fate: VolumeFate = { label: `v${++this.#made}`, sizes: [sizeBytes], state: "being made" };
    this.#fates.set(number, fate);
    slot.oracle = new Oracle(hashOf(this.#seed, number, this.#made), true);
    // All of it is looked at: what a volume that was there before it had must not show.
    slot.oracle.noteRead(0, sizeBytes);
    try {
      const { name } = await this.#running.createVolume({ sizeBytes, label: fate.label });
      fate.state = "there";
      slot.volume = find(this.#running, name);
    } catch (error) {
      const isFull = error instanceof BcacheError && error.code === "NoSpace" && !slot.mayFail;
      // A disk that failed may have it all the same.
      if (isFull) this.#fates.delete(number);
      else this.#forgive(slot, error);
    }
  }

  async resize(slot: Slot, sizeBytes: number): Promise<void> {
    const fate = this.#fates.get(slot.number);
    const { volume } = slot;
    if (fate?.state !== "there" || volume === undefined || fate.sizes.length > 1) return;
    const [before] = fate.sizes as [number];
    const resize = async () => {
      fate.sizes = [before, sizeBytes];
      try {
        await this.#running.resizeVolume(volume.name, sizeBytes, { force: true });
        fate.sizes = [sizeBytes];
        return true;
      } catch (error) {
        this.#forgive(slot, error);
        return false;
      }
    };
    if (sizeBytes >= before) {
      if (await resize()) slot.oracle.noteRead(before, sizeBytes - before);
    } else await slot.cutOff(sizeBytes, before, resize);
  }

  async destroy(slot: Slot): Promise<void> {
    const fate = this.#fates.get(slot.number);
    const { volume } = slot;
    if (fate?.state !== "there" || volume === undefined) return;
    fate.state = "being destroyed";
    slot.volume = undefined;
    try {
      await this.#running.destroyVolume(volume.name, { force: true });
      this.#fates.delete(slot.number);
    } catch (error) {
      this.#forgive(slot, error);
    }
  }

  async #moved(slot: Slot, body: () => Promise<void>): Promise<void> {
    this.#moving.add(slot.number);
    slot.leaving = true;
    try {
      await body();
    } finally {
      slot.leaving = false;
      this.#moving.delete(slot.number);
    }
  }

  async #inTurn(slot: Slot, body: () => Promise<void>): Promise<void> {
    try {
      await body();
    } catch (error) {
      this.#forgive(slot, error);
    }
  }

  #forgive(slot: Slot, error: unknown): void {
    if (!(error instanceof BcacheError)) throw error;
    if (!slot.mayFail && !IN_TURN.has(error.code)) throw error;
  }
}

const PATH = "backing";

export function pathOfSlot(slot: number): string {
  return `${PATH}${slot}`;
}

export function slotOfPath(path: string): number {
  return Number(path.slice(PATH.length));
}

function find(set: CacheSet, name: string): BlockVolume {
  const found = set.volumes.find((volume) => volume.name === name);
  if (found === undefined) throw new Error(`${name} is in the status, but not served`);
  return found;
}
