/**
 * Mutations of valid bytes that know where fields are: bits, bytes, numbers at the limits of what
 * decoders compute with, pieces moved, doubled, blanked. One to four of them make an input.
 */
import type { SimRandom } from "../simulation/sim_random.ts";

/** Offsets of fields, as the layouts of lib/ondisk give them. */
export type Fields = Readonly<Record<string, number>>;

const NUMBERS: readonly bigint[] = [
  0n,
  1n,
  2n,
  3n,
  7n,
  8n,
  15n,
  16n,
  127n,
  128n,
  255n,
  256n,
  257n,
  512n,
  1024n,
  4095n,
  4096n,
  0x7fffn,
  0x8000n,
  0xffffn,
  0x1_0000n,
  0xf_ffffn,
  0x7fff_ffffn,
  0x8000_0000n,
  0xffff_ffffn,
  0x1_0000_0000n,
  (1n << 43n) - 1n,
  (1n << 53n) - 1n,
  1n << 53n,
  (1n << 63n) - 1n,
  1n << 63n,
  (1n << 64n) - 1n,
];

/** A number at some limit, or near one. */
export function extremeNumber(random: SimRandom): bigint {
  const near = random.chance(0.3) ? BigInt(random.below(5) - 2) : 0n;
  return BigInt.asUintN(64, random.pick(NUMBERS) + near);
}

function putNumber(bytes: Uint8Array, at: number, size: number, value: bigint): void {
  for (let byte = 0; byte < size && at + byte < bytes.length; byte++) {
    bytes[at + byte] = Number((value >> BigInt(8 * byte)) & 0xffn);
  }
}

/** Sets a field, or a place that is aligned like one, to an extreme number. */
function setNumber(random: SimRandom, bytes: Uint8Array, fields: Fields | undefined): void {
  const size = random.pick([1, 2, 4, 8, 8]);
  const names = Object.values(fields ?? {});
  const at = names.length > 0 && random.chance(0.7)
    ? random.pick(names)
    : Math.floor(random.below(bytes.length) / size) * size;
  putNumber(bytes, at, size, extremeNumber(random));
}

function flipBit(random: SimRandom, bytes: Uint8Array): void {
  const at = random.below(bytes.length);
  bytes[at] = bytes[at]! ^ (1 << random.below(8));
}

/** Adds a little to a 32-bit word: off by one, off by a page. */
function addLittle(random: SimRandom, bytes: Uint8Array, fields: Fields | undefined): void {
  const names = Object.values(fields ?? {});
  const at = names.length > 0 && random.chance(0.7)
    ? random.pick(names)
    : random.below(bytes.length >>> 2) * 4;
  if (at + 4 > bytes.length) return flipBit(random, bytes);
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const by = random.pick([-8, -1, 1, 1, 2, 8, 0x100, 0x1_0000]);
  view.setUint32(at, (view.getUint32(at, true) + by) >>> 0, true);
}

/** Copies a piece over another place; a piece of words, as a rule. */
function movePiece(random: SimRandom, bytes: Uint8Array): void {
  const unit = random.pick([1, 8, 8, 24, 512]);
  const units = Math.floor(bytes.length / unit);
  if (units < 2) return flipBit(random, bytes);
  const length = Math.min(1 + random.below(4), units) * unit;
  const from = random.below(units) * unit;
  bytes.copyWithin(random.below(units) * unit, from, Math.min(from + length, bytes.length));
}

/** Shifts all behind a place up or down: something was left out, or came in between. */
function shift(random: SimRandom, bytes: Uint8Array): void {
  const by = random.pick([1, 4, 8, 8, 16, 24]);
  const at = random.below(bytes.length);
  if (random.chance(0.5)) bytes.copyWithin(at + by, at);
  else bytes.copyWithin(at, at + by);
}

function blank(random: SimRandom, bytes: Uint8Array): void {
  const at = random.below(bytes.length);
  bytes.fill(random.pick([0, 0, 0xff, random.below(256)]), at, at + 1 + random.below(64));
}

/** Changes `bytes` in place, which must not be empty. `fields` draw most of the numbers. */
export function mutate(random: SimRandom, bytes: Uint8Array, fields?: Fields): void {
  for (let left = 1 + random.below(4); left > 0; left--) {
    const kind = random.below(8);
    if (kind < 2) setNumber(random, bytes, fields);
    else if (kind < 3) addLittle(random, bytes, fields);
    else if (kind < 5) flipBit(random, bytes);
    else if (kind < 6) movePiece(random, bytes);
    else if (kind < 7) shift(random, bytes);
    else blank(random, bytes);
  }
}

const CHARACTERS = "\0\t\n\r \"%&'()*+,-./0123456789:;<=>?@[\\]^_`abkKMGTxyz{|}~\u00e9\u2028\ud800";

/** Changes a text: characters left out, doubled, replaced; pieces of it repeated. */
export function mutateText(random: SimRandom, text: string): string {
  let changed = text;
  for (let left = 1 + random.below(3); left > 0; left--) {
    const at = random.below(changed.length + 1);
    const to = Math.min(at + 1 + random.below(4), changed.length);
    const kind = random.below(6);
    const some = CHARACTERS.charAt(random.below(CHARACTERS.length));
    if (kind === 0) changed = changed.slice(0, at) + changed.slice(to);
    else if (kind === 1) changed = changed.slice(0, at) + some + changed.slice(at);
    else if (kind === 2) changed = changed.slice(0, at) + some + changed.slice(at + 1);
    else if (kind === 3) {
      changed = changed.slice(0, to) + changed.slice(at, to).repeat(random.below(20)) +
        changed.slice(to);
    } else if (kind === 4) {
      changed = changed.slice(0, at) + String(extremeNumber(random)) + changed.slice(to);
    } else changed = changed.slice(0, at);
  }
  return changed;
}
