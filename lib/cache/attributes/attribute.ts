/**
 * What an attribute is, and how the text of one is read and written. The attributes themselves
 * are in the files beside this one, by topic. Names are those of the kernel's sysfs.
 */
import { BcacheError } from "../../base/errors.ts";
import { parseSizeBytes } from "../../base/units.ts";
import type { AttributeInfo } from "../ports.ts";

export interface Attribute<Target> {
  readonly name: string;
  readonly help: string;
  /** Of a number. */
  readonly unit?: string;
  /** What may be written, in words; of one that can be written. */
  readonly range?: string;
  /** The value after start, unless a superblock says otherwise; of one that can be written. */
  readonly initial?: string;
  /** Kept across restarts; where. */
  readonly kept?: string;
  /** The value in the form `set` takes. */
  read(target: Target): string;
  /** Throws what `write` would throw about the text, without a cache set; see `checkSetting`. */
  check?(limits: Target, text: string): void;
  /**
   * Absent: it can only be read, and setting it is ReadOnly. Rejects with InvalidArgument or
   * OutOfRange, and then changes nothing.
   */
  write?(target: Target, text: string): Promise<void> | void;
}

export function describe<Target>(attribute: Attribute<Target>, target: Target): AttributeInfo {
  return {
    name: attribute.name,
    value: attribute.read(target),
    writable: attribute.write !== undefined,
    help: attribute.help,
    ...facts(attribute),
  };
}

/** What is known of an attribute beside its name and value, without the absent. */
function facts(
  { unit, range, initial, kept }: Attribute<never>,
): Pick<AttributeInfo, "unit" | "range" | "initial" | "kept"> {
  return {
    ...(unit === undefined ? {} : { unit }),
    ...(range === undefined ? {} : { range }),
    ...(initial === undefined ? {} : { initial }),
    ...(kept === undefined ? {} : { kept }),
  };
}

/** Finds an attribute by name; names those there are when it is unknown. */
export function findAttribute<Target>(
  table: readonly Attribute<Target>[],
  name: string,
  of: string,
): Attribute<Target> {
  const found = table.find((attribute) => attribute.name === name);
  if (found) return found;
  throw new BcacheError(
    "NotFound",
    `${of} has no attribute ${shownName(name)}; there are: ` +
      table.map((attribute) => attribute.name).join(", "),
  );
}

const NEAREST_NAMES_MAX = 3;
const NAME_SHOWN_MAX = 40;

/** A name that somebody gave, quoted and shortened for a message of one line. */
export function shownName(name: string): string {
  return JSON.stringify(
    name.length > NAME_SHOWN_MAX ? `${name.slice(0, NAME_SHOWN_MAX)}...` : name,
  );
}

/** `did you mean a, b, c? `: names that are like one that there is not; "" when none is. */
export function nearestNames(name: string, names: readonly string[]): string {
  const wanted = name.slice(0, NAME_SHOWN_MAX).toLowerCase();
  const near = names
    .map((each) => ({ each, distance: each.includes(wanted) ? 0 : distanceOf(wanted, each) }))
    .filter(({ distance }) => wanted.length >= 3 && distance * 3 <= wanted.length)
    .sort((a, b) => a.distance - b.distance)
    .slice(0, NEAREST_NAMES_MAX)
    .map(({ each }) => each);
  return near.length === 0 ? "" : `did you mean ${near.join(", ")}? `;
}

/** How many letters must be changed, added or left out to make one of the other. */
function distanceOf(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, at) => at);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const changed = row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1);
      next.push(Math.min(changed, row[j]! + 1, next[j - 1]! + 1));
    }
    row = next;
  }
  return row[b.length]!;
}

export async function writeAttribute<Target>(
  attribute: Attribute<Target>,
  target: Target,
  text: string,
): Promise<AttributeInfo> {
  if (attribute.write === undefined) {
    throw new BcacheError("ReadOnly", `${attribute.name} can only be read`);
  }
  await attribute.write(target, text);
  return describe(attribute, target);
}

/** A table of attributes and what they are attributes of. */
export interface BoundAttributes {
  /** All, or the one of that name. @throws BcacheError NotFound */
  describe(name?: string): AttributeInfo[];
  write(name: string, text: string): Promise<AttributeInfo>;
}

/** @param of whose they are, for messages */
export function bound<Target>(
  table: readonly Attribute<Target>[],
  target: Target,
  of: string,
): BoundAttributes {
  return {
    describe: (name) => {
      const chosen = name === undefined ? table : [findAttribute(table, name, of)];
      return chosen.map((attribute) => describe(attribute, target));
    },
    write: (name, text) => writeAttribute(findAttribute(table, name, of), target, text),
  };
}

interface NumberField<Target> {
  readonly name: string;
  readonly help: string;
  readonly unit: string;
  readonly min: number;
  /** Another attribute may be the limit. */
  readonly max: number | { readonly attribute: string; readonly of: (target: Target) => number };
  readonly get: (target: Target) => number;
  readonly set: (target: Target, value: number) => Promise<void> | void;
  readonly initial: number;
  /** Takes sizes like 4M as well as plain numbers. */
  readonly size?: boolean;
}

/** A number that somebody gave, for a message of one line. */
function shortened(text: string): string {
  const shown = text.trim();
  return shown.length > NAME_SHOWN_MAX ? `${shown.slice(0, NAME_SHOWN_MAX)}...` : shown;
}

/** A whole number within a range: one outside is OutOfRange, anything else InvalidArgument. */
export function numberAttribute<Target>(field: NumberField<Target>): Attribute<Target> {
  const parse = (target: Target, text: string): number => {
    const { max: limit } = field;
    const max = typeof limit === "number" ? limit : limit.of(target);
    const which = typeof limit === "number" ? "" : ` (${limit.attribute})`;
    const expected = `expected a whole number of ${field.unit} from ${field.min} to ${max}${which}`;
    // Any whole number: one that is out of range is refused for that.
    const plain = /^-?\d+$/.test(text.trim());
    if (!plain && !field.size) {
      throw new BcacheError(
        "InvalidArgument",
        `${field.name}: found ${JSON.stringify(text)}, ${expected}`,
      );
    }
    const value = plain ? Number(text.trim()) + 0 : parseSizeBytes(text, field.name);
    if (value < field.min || value > max) {
      throw new BcacheError("OutOfRange", `${field.name}: found ${shortened(text)}, ${expected}`);
    }
    return value;
  };
  const most = typeof field.max === "number" ? field.max : field.max.attribute;
  return {
    name: field.name,
    help: field.help,
    unit: field.unit,
    range: `${field.min} to ${most}`,
    initial: String(field.initial),
    read: (target) => String(field.get(target)),
    check: (limits, text) => void parse(limits, text),
    write: (target, text) => field.set(target, parse(target, text)),
  };
}

/** The names of the numbers that may be changed in an object. */
type NumberKey<Owner> = {
  [Key in keyof Owner]-?: Owner[Key] extends number ? Key : never;
}[keyof Owner];

/** A whole number within a range, kept in this field of an object as it is. */
export function fieldAttribute<Target, Owner>(
  owner: (target: Target) => Owner,
  key: NumberKey<Owner>,
  field: Omit<NumberField<Target>, "get" | "set">,
): Attribute<Target> {
  const within = (target: Target) => owner(target) as Record<NumberKey<Owner>, number>;
  return numberAttribute({
    ...field,
    get: (target) => within(target)[key],
    set: (target, value) => {
      within(target)[key] = value;
    },
  });
}

/** 0 or 1; the words people use are taken too. */
export function booleanAttribute<Target>(field: {
  readonly name: string;
  readonly help: string;
  readonly initial: boolean;
  /** 0 is refused, and this is the end of what is said then: why, and what to do instead. */
  readonly neverOff?: string;
  readonly get: (target: Target) => boolean;
  readonly set: (target: Target, value: boolean) => Promise<void> | void;
}): Attribute<Target> {
  const words: Record<string, boolean> = {
    "0": false,
    "1": true,
    off: false,
    on: true,
    false: false,
    true: true,
    no: false,
    yes: true,
  };
  const range = field.neverOff === undefined ? "0 or 1" : "1";
  return {
    name: field.name,
    help: field.help,
    range,
    initial: field.initial ? "1" : "0",
    read: (target) => (field.get(target) ? "1" : "0"),
    check: (_limits, text) => void parse(text),
    write: (target, text) => field.set(target, parse(text)),
  };
  function parse(text: string): boolean {
    const key = text.trim().toLowerCase();
    const value = Object.hasOwn(words, key) ? words[key] : undefined;
    if (value === undefined) {
      throw new BcacheError(
        "InvalidArgument",
        `${field.name}: found ${JSON.stringify(text)}, expected ${range}`,
      );
    }
    if (!value && field.neverOff !== undefined) {
      const message = `${field.name}: found 0, expected 1${field.neverOff}`;
      throw new BcacheError("InvalidArgument", message);
    }
    return value;
  }
}

/** One of a few words. */
export function choiceAttribute<Target, Choice extends string>(field: {
  readonly name: string;
  readonly help: string;
  readonly choices: readonly Choice[];
  readonly initial: Choice;
  readonly kept?: string;
  readonly get: (target: Target) => Choice;
  readonly set: (target: Target, value: Choice) => Promise<void> | void;
}): Attribute<Target> {
  return {
    name: field.name,
    help: field.help,
    range: field.choices.join(", "),
    initial: field.initial,
    ...(field.kept === undefined ? {} : { kept: field.kept }),
    read: (target) => field.get(target),
    check: (_limits, text) => void parse(text),
    write: (target, text) => field.set(target, parse(text)),
  };
  function parse(text: string): Choice {
    const value = field.choices.find((choice) => choice === text.trim());
    if (value === undefined) {
      throw new BcacheError(
        "InvalidArgument",
        `${field.name}: found ${JSON.stringify(text)}, expected one of ${field.choices.join(", ")}`,
      );
    }
    return value;
  }
}

/** A value that is only shown. */
export function shown<Target>(
  name: string,
  help: string,
  read: (target: Target) => string | number,
): Attribute<Target> {
  return { name, help, read: (target) => String(read(target)) };
}

/** Something that any written value does. Write-only in the kernel; here it reads 0. */
export function triggerAttribute<Target>(
  name: string,
  help: string,
  run: (target: Target) => Promise<void> | void,
): Attribute<Target> {
  return { name, help, range: "anything", read: () => "0", write: (target) => run(target) };
}
