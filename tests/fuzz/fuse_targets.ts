/** Requests of FUSE: a session that gets a few of them, whole or not, over volumes in memory. */
import type { Channel } from "../../fuse/channel.ts";
import { WOULD_BLOCK } from "../../fuse/channel.ts";
import { Filesystem } from "../../fuse/filesystem.ts";
import * as protocol from "../../fuse/protocol.ts";
import { FuseSession } from "../../fuse/session.ts";
import { REPLY_OFFSET, REQUEST_OFFSET, type Slot, SlotPool } from "../../fuse/slot.ts";
import { MemoryVolume } from "../fuse/support/memory_engine.ts";
import { concat, initRequest, request, struct, text, unaligned } from "../fuse/support/wire.ts";
import type { SimRandom } from "../simulation/sim_random.ts";
import { mutate } from "./mutate.ts";
import { expect, type FuzzTarget } from "./target.ts";

const { OPCODE } = protocol;
const SIZE = 16 * 1024;
const FILE = 2;

/** One valid request of every kind that has arguments, and of some that have none. */
function samples(): Uint8Array[] {
  const handle = { fh: FILE, offset: 512, size: 1024 };
  const data = new Uint8Array(1024).fill(0x5a);
  return [
    initRequest(),
    request("LOOKUP", 1, text("bcache0")),
    request("GETATTR", FILE, new Uint8Array(16)),
    request("SETATTR", FILE, struct(protocol.SETATTR_IN, { valid: 8, size: 4096 })),
    request("SETATTR", FILE, struct(protocol.SETATTR_IN, { valid: 1, mode: 0o600 })),
    request("OPEN", FILE, struct(protocol.OPEN_IN, { flags: 2 })),
    request("READ", FILE, struct(protocol.READ_IN, handle)),
    request("READ", FILE, struct(protocol.READ_IN, { ...handle, size: SIZE })),
    request("WRITE", FILE, concat(struct(protocol.WRITE_IN, handle), data)),
    request("FSYNC", FILE, struct(protocol.FSYNC_IN, { fh: FILE })),
    request("FLUSH", FILE, struct(protocol.FLUSH_IN, { fh: FILE })),
    request("RELEASE", FILE, struct(protocol.RELEASE_IN, { fh: FILE })),
    request(
      "FALLOCATE",
      FILE,
      struct(protocol.FALLOCATE_IN, { fh: FILE, mode: 3, offset: 0, length: 512 }),
    ),
    request("OPENDIR", 1, struct(protocol.OPEN_IN, { flags: 0 })),
    request("READDIR", 1, struct(protocol.READ_IN, { fh: 1, offset: 0, size: 4096 })),
    request("READDIRPLUS", 1, struct(protocol.READ_IN, { fh: 1, offset: 1, size: 4096 })),
    request("STATFS", 1),
    request("ACCESS", 1, struct(protocol.ACCESS_IN, { mask: 4 })),
    request("BATCH_FORGET", 0, concat(struct(protocol.BATCH_FORGET_IN, { count: 2 }), data)),
    request("SYNCFS", 1, new Uint8Array(8)),
    request("RENAME2", 1, concat(new Uint8Array(16), text("a"), text("b"))),
    request("IOCTL", FILE, new Uint8Array(32)),
    request("INTERRUPT", 0, new Uint8Array(8)),
    request("DESTROY", 0),
  ];
}

const FIELDS = { ...protocol.IN_HEADER, ...shifted(protocol.READ_IN), ...shifted({ mode: 24 }) };

function shifted(table: Record<string, number>): Record<string, number> {
  const moved: Record<string, number> = {};
  for (const [name, at] of Object.entries(table)) {
    if (at < protocol.IN_HEADER.sizeBytes) moved[`argument.${name}`] = 40 + at;
  }
  return moved;
}

/** Takes replies, and judges their form. */
class JudgeChannel implements Channel {
  readonly fd = -1;
  readonly uniques: number[] = [];

  receive(): number {
    return WOULD_BLOCK;
  }

  send(slot: Slot, lengthBytes: number): number {
    const words = new Uint32Array(slot.bytes.buffer, slot.bytes.byteOffset + REPLY_OFFSET, 4);
    const error = words[1]! | 0;
    expect(words[0] === lengthBytes, "a reply says its length");
    expect(REPLY_OFFSET + lengthBytes <= slot.bytes.length, "a reply lies in its slot");
    expect(error <= 0 && error >= -511, "an error that the kernel takes");
    expect(error === 0 || lengthBytes === protocol.OUT_HEADER.sizeBytes, "errors have no data");
    this.uniques.push(words[2]!);
    return 0;
  }

  close(): void {}
}

const NEVER_ANSWERED: readonly number[] = [
  OPCODE.FORGET,
  OPCODE.BATCH_FORGET,
  OPCODE.INTERRUPT,
  OPCODE.NOTIFY_REPLY,
];

class Harness {
  readonly channel = new JudgeChannel();
  readonly volume = new MemoryVolume("bcache0", SIZE);
  readonly #session: FuseSession;
  readonly #pool: SlotPool;

  constructor(pool: SlotPool, options: { readOnly: boolean; waits: boolean }) {
    this.#pool = pool;
    if (options.waits) this.volume.delay = () => Promise.resolve();
    const filesystem = new Filesystem({
      volumes: [this.volume, new MemoryVolume("bcache1", 4096)],
      ownerUser: 1000,
      ownerGroup: 1000,
      readOnly: options.readOnly,
      wallSeconds: () => 1_600_000_000,
    });
    this.#session = new FuseSession({
      channel: this.channel,
      filesystem,
      pool,
      log: (_level, message) => expect(!message.includes("assertion"), message),
      onReady: () => {},
    });
  }

  async send(bytes: Uint8Array, unique: number): Promise<void> {
    const slot = this.#pool.tryTake(protocol.MAX_TRANSFER_BYTES);
    if (slot === undefined) throw new Error("expected: a slot is free");
    slot.bytes.set(bytes, REQUEST_OFFSET);
    const before = this.channel.uniques.length;
    if (!this.#session.handle(slot, bytes.length)) this.#pool.give(slot);
    for (let turns = 0; this.#session.pending > 0; turns++) {
      expect(turns < 1000, "what waits comes to an end");
      await Promise.resolve();
    }
    expect(this.#pool.taken === 0, "no slot is lost");
    const replies = this.channel.uniques.slice(before);
    if (bytes.length < protocol.IN_HEADER.sizeBytes) return;
    const view = new DataView(bytes.buffer, bytes.byteOffset);
    const isWhole = view.getUint32(protocol.IN_HEADER.len, true) === bytes.length;
    const opcode = view.getUint32(protocol.IN_HEADER.opcode, true);
    const wants = isWhole && NEVER_ANSWERED.includes(opcode) ? 0 : 1;
    expect(replies.length === wants, `${wants} replies to operation ${opcode}`);
    expect(replies.every((each) => each === unique), "a reply names its request");
  }
}

function setUnique(bytes: Uint8Array, unique: number): void {
  if (bytes.length < 16) return;
  new DataView(bytes.buffer, bytes.byteOffset).setUint32(protocol.IN_HEADER.unique, unique, true);
}

function attackedRequest(random: SimRandom, valid: readonly Uint8Array[]): Uint8Array {
  let bytes: Uint8Array = random.pick(valid).slice();
  if (random.chance(0.85)) mutate(random, bytes, FIELDS);
  if (random.chance(0.15)) bytes = bytes.slice(0, random.below(bytes.length + 1));
  if (random.chance(0.1)) bytes = concat(bytes, new Uint8Array(random.below(64)).fill(7));
  // With the right length more often than not, or nothing behind it would ever be reached.
  if (bytes.length >= 4 && random.chance(0.8)) {
    new DataView(bytes.buffer).setUint32(protocol.IN_HEADER.len, bytes.length, true);
  }
  return bytes;
}

const session: FuzzTarget = {
  name: "fuse",
  what: "requests of FUSE, one to four to a session",
  share: 60,
  prepare: () => {
    const valid = samples();
    const pool = new SlotPool(unaligned);
    return async (random) => {
      const harness = new Harness(pool, {
        readOnly: random.chance(0.2),
        waits: random.chance(0.3),
      });
      if (random.chance(0.95)) {
        const init = initRequest();
        setUnique(init, 1);
        await harness.send(init, 1);
      }
      const before = harness.volume.bytes.length;
      for (let unique = 2, left = 1 + random.below(4); left > 0; left--, unique++) {
        const bytes = attackedRequest(random, valid);
        setUnique(bytes, unique);
        await harness.send(bytes, unique);
      }
      expect(harness.volume.bytes.length === before, "a volume keeps its size");
    };
  },
};

export const FUSE_TARGETS: readonly FuzzTarget[] = [session];
