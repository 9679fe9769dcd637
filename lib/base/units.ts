/**
 * Sizes for people: what they type (`512k`, `1.5G`, plain bytes), what they read (`1.5 KiB`), and
 * what bcache prints (`4.0k`). And times.
 */
import { BcacheError } from "./errors.ts";

export const KIB = 1024;
export const MIB = 1024 * 1024;
export const GIB = 1024 * 1024 * 1024;

const SUFFIXES = "kMGTPEZY";

/**
 * Bytes from a text: decimal digits, optionally a fraction, optionally k, M, G or T (powers of
 * 1024, any case; an `iB` or `B` behind it is accepted). `what` names the option in
 * the message. Throws InvalidArgument, or OutOfRange for what
 * is negative or more than 2^53 - 1.
 */
export function parseSizeBytes(text: string, what: string = "size"): number {
  const match = /^(-?\d+)(?:\.(\d{1,9}))?\s*([kmgt])?(?:i?b)?$/i.exec(text.trim());
  const expected = "expected a number of bytes, or one with k, M, G or T (1024 each), like 512k";
  if (!match) throw new BcacheError("InvalidArgument", `${what} ${quoted(text)}: ${expected}`);
  const power = match[3] === undefined ? 0 : 1 + SUFFIXES.toLowerCase().indexOf(
    match[3].toLowerCase(),
  );
  const bytes = Number(`${match[1]}.${match[2] ?? "0"}`) * KIB ** power;
  if (match[1]!.startsWith("-") && bytes !== 0) {
    throw new BcacheError("OutOfRange", `${what} ${quoted(text)} is negative; ${expected}`);
  }
  if (!Number.isSafeInteger(bytes)) {
    const isLarge = bytes > Number.MAX_SAFE_INTEGER;
    const reason = isLarge ? "too large" : "not a whole number of bytes";
    const code = isLarge ? "OutOfRange" : "InvalidArgument";
    throw new BcacheError(code, `${what} ${quoted(text)} is ${reason}; ${expected}`);
  }
  return bytes === 0 ? 0 : bytes; // No -0.
}

/** Somebody's text in a message: shortened, so that one line stays one line. */
function quoted(text: string): string {
  return JSON.stringify(text.length > 40 ? `${text.slice(0, 40)}...` : text);
}

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"] as const;

/** `1536` as `1.5 KiB`. */
export function formatBytes(bytes: number): string {
  let value = bytes;
  let unit = 0;
  while (value >= KIB && unit < UNITS.length - 1) {
    value /= KIB;
    unit++;
  }
  return unit === 0 ? `${bytes} B` : `${value.toFixed(1)} ${UNITS[unit]}`;
}

/**
 * bcache's form: divided by 1024 at least once and until below 1000, one digit after the point,
 * cut off, not rounded: 0 is `0.0k`, 4096 is `4.0k`. Kernel: bch_hprint in util.c.
 */
export function formatSize(bytes: number): string {
  let whole = Math.abs(Math.trunc(bytes));
  let remainder = 0;
  let unit = -1;
  do {
    unit++;
    remainder = whole % KIB;
    whole = Math.floor(whole / KIB);
  } while (whole >= 1000);
  const sign = bytes < 0 ? "-" : "";
  return `${sign}${whole}.${Math.floor(remainder * 10 / KIB)}${SUFFIXES[unit]!}`;
}

const DAY_SECONDS = 86_400;
/** From 1 March of the year 0 to 1970. */
const DAYS_BEFORE_1970 = 719_468;
/** The calendar repeats itself after 400 years. */
const ERA_DAYS = 146_097;

/** Whole seconds since 1970 as `2026-11-22T02:54:19Z`. */
export function isoTime(seconds: number): string {
  const days = Math.floor(seconds / DAY_SECONDS);
  const inDay = seconds - days * DAY_SECONDS;
  const clock = [Math.floor(inDay / 3600), Math.floor(inDay / 60) % 60, inDay % 60];
  return `${dateText(days)}T${clock.map(twoDigits).join(":")}Z`;
}

/** The date so many days after 1970-01-01. Years begin in March here: a leap day is their last. */
function dateText(days: number): string {
  const shifted = days + DAYS_BEFORE_1970;
  const era = Math.floor(shifted / ERA_DAYS);
  const inEra = shifted - era * ERA_DAYS;
  const leaps = Math.floor(inEra / 1460) - Math.floor(inEra / 36_524) +
    Math.floor(inEra / (ERA_DAYS - 1));
  const year = Math.floor((inEra - leaps) / 365);
  const inYear = inEra - (365 * year + Math.floor(year / 4) - Math.floor(year / 100));
  const month = Math.floor((5 * inYear + 2) / 153);
  const day = inYear - Math.floor((153 * month + 2) / 5) + 1;
  const calendarYear = year + era * 400 + (month < 10 ? 0 : 1);
  return [String(calendarYear).padStart(4, "0"), (month + 2) % 12 + 1, day].map(twoDigits)
    .join("-");
}

function twoDigits(value: number | string): string {
  return String(value).padStart(2, "0");
}
