/** Builds requests and takes replies apart, field by field, for tests of the session. */
import { assert } from "../../../lib/base/assert.ts";
import type { BlockVolume } from "../../../lib/cache/ports.ts";
import { MemoryChannel } from "./channel_memory.ts";
import { Filesystem } from "../../../fuse/filesystem.ts";
import { IN_HEADER, INIT_IN, OPCODE, OUT_HEADER } from "../../../fuse/protocol.ts";
import { FuseSession } from "../../../fuse/session.ts";
import { type Slot, SlotPool } from "../../../fuse/slot.ts";

export const OWNER = 1000;
/** What a current kernel offers, as far as it matters. */
const KERNEL_FLAGS = 0x73ff_fffb;

export function unaligned(): number {
  return 0;
}

/** The fields of a struct, by name; 64-bit ones take any safe integer. */
export function struct(
  table: { readonly sizeBytes: number } & Record<string, number>,
  fields: Record<string, number>,
): Uint8Array {
  const bytes = new Uint8Array(table.sizeBytes);
  const view = new DataView(bytes.buffer);
  const offsets = Object.values(table);
  for (const [name, value] of Object.entries(fields)) {
    const at = table[name];
    assert(at !== undefined, `the struct has the field ${name}`);
    const next = Math.min(...offsets.filter((offset) => offset > at));
    if (next - at === 8) view.setBigUint64(at, BigInt.asUintN(64, BigInt(value)), true);
    else if (next - at === 4) view.setUint32(at, value >>> 0, true);
    else view.setUint16(at, value, true);
  }
  return bytes;
}

export function concat(...parts: readonly Uint8Array[]): Uint8Array {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

export function text(name: string): Uint8Array {
  return new TextEncoder().encode(`${name}\0`);
}

export function request(
  opcode: keyof typeof OPCODE | number,
  node: number,
  argument: Uint8Array = new Uint8Array(0),
  unique = 7,
): Uint8Array {
  const number = typeof opcode === "number" ? opcode : OPCODE[opcode];
  const len = IN_HEADER.sizeBytes + argument.length;
  return concat(struct(IN_HEADER, { len, opcode: number, unique, nodeid: node }), argument);
}

export interface Reply {
  readonly error: number;
  readonly unique: bigint;
  readonly payload: Uint8Array;
}

export function parseReply(bytes: Uint8Array): Reply {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  assert(view.getUint32(OUT_HEADER.len, true) === bytes.length, "the length is the whole reply's");
  return {
    error: view.getInt32(OUT_HEADER.error, true),
    unique: view.getBigUint64(OUT_HEADER.unique, true),
    payload: bytes.slice(OUT_HEADER.sizeBytes),
  };
}

export function u32(bytes: Uint8Array, at: number): number {
  return new DataView(bytes.buffer, bytes.byteOffset).getUint32(at, true);
}

export function u64(bytes: Uint8Array, at: number): number {
  return Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(at, true));
}

/** A session over memory, which agreed with its kernel. */
export class Bench {
  readonly channel = new MemoryChannel();
  readonly pool = new SlotPool(unaligned);
  readonly session: FuseSession;
  readonly logged: string[] = [];
  #slot: Slot;

  constructor(
    volumes: readonly BlockVolume[],
    options: { readOnly?: boolean; init?: boolean } = {},
  ) {
    const filesystem = new Filesystem({
      volumes,
      ownerUser: OWNER,
      ownerGroup: OWNER,
      readOnly: options.readOnly ?? false,
      wallSeconds: () => 1_600_000_000,
    });
    this.session = new FuseSession({
      channel: this.channel,
      filesystem,
      pool: this.pool,
      log: (_level, message) => this.logged.push(message),
      onReady: () => {},
    });
    this.#slot = this.#takeSlot();
    if (options.init !== false) this.ask(initRequest());
  }

  /** Hands over a request; its replies are in `channel.replies`. */
  send(bytes: Uint8Array): void {
    this.channel.push(bytes);
    const length = this.channel.receive(this.#slot);
    if (this.session.handle(this.#slot, length)) this.#slot = this.#takeSlot();
  }

  /** The one reply that came at once. */
  ask(bytes: Uint8Array): Reply {
    this.send(bytes);
    assert(this.channel.replies.length === 1, "one request has one reply");
    return parseReply(this.channel.replies.pop()!);
  }

  /** The one reply, when all requests under way are done. */
  async askLater(bytes: Uint8Array): Promise<Reply> {
    this.send(bytes);
    await this.idle();
    assert(this.channel.replies.length === 1, "one request has one reply");
    return parseReply(this.channel.replies.pop()!);
  }

  async idle(): Promise<void> {
    while (this.session.pending > 0) await Promise.resolve();
  }

  #takeSlot(): Slot {
    const slot = this.pool.tryTake(1024 * 1024);
    assert(slot !== undefined, "a slot is free");
    return slot;
  }
}

export function initRequest(fields: Record<string, number> = {}): Uint8Array {
  return request(
    "INIT",
    0,
    struct(INIT_IN, {
      major: 7,
      minor: 45,
      maxReadahead: 131072,
      flags: KERNEL_FLAGS,
      flags2: 0xffff_ffff,
      ...fields,
    }),
  );
}
