/**
 * `get` and `set`: attributes by name. A name alone is looked for in the cache set and in its
 * devices; `bcache0/label` says whose. `set` takes the set's own before those of devices.
 */
import { BcacheError } from "../../lib/base/errors.ts";
import type { AttributeInfo, CacheControl } from "../../lib/cache/ports.ts";
import { printable, table } from "./format.ts";
import { findMount } from "./find_mount.ts";
import type { Program } from "./program.ts";
import { UsageError } from "./program.ts";

const TAB_COLUMNS = 8;

/** An attribute and whose it is; `device` undefined means the cache set's. */
interface Owned {
  device: string | undefined;
  attribute: AttributeInfo;
}

/** Reads `NAME=VALUE`. */
export function parseSetting(text: string): { name: string; value: string } {
  const at = text.indexOf("=");
  if (at <= 0) throw new UsageError(`--set ${text}: expected NAME=VALUE`);
  return { name: text.slice(0, at), value: text.slice(at + 1) };
}

async function attributesOf(control: CacheControl): Promise<Owned[]> {
  const { devices, volumes } = await control.status();
  const owned: Owned[] = [];
  for (const device of [undefined, ...[...devices, ...volumes].map((each) => each.name)]) {
    for (const attribute of await attributesIfThere(control, device)) {
      owned.push({ device, attribute });
    }
  }
  return owned;
}

/** A device that was stopped since it was listed has none. */
async function attributesIfThere(
  control: CacheControl,
  device: string | undefined,
): Promise<AttributeInfo[]> {
  try {
    return await control.attributes(device);
  } catch (error) {
    const isGone = error instanceof BcacheError && error.code === "NotFound";
    if (device === undefined || !isGone) throw error;
    return [];
  }
}

function fullName({ device, attribute }: Owned): string {
  return device === undefined ? attribute.name : `${device}/${attribute.name}`;
}

function matching(all: readonly Owned[], name: string): Owned[] {
  const found = all.filter((owned) => fullName(owned) === name || owned.attribute.name === name);
  if (found.length > 0) return found;
  throw new BcacheError(
    "NotFound",
    `there is no attribute ${JSON.stringify(name)}; bcache-fuse get MOUNTPOINT lists them all`,
  );
}

/**
 * Sets all, after all names were looked up and found writable. Throws at the first value that is
 * refused, before any later one is set.
 */
export async function applySettings(
  control: CacheControl,
  settings: ReadonlyArray<{ name: string; value: string }>,
): Promise<Array<{ name: string; value: string }>> {
  const all = settings.length === 0 ? [] : await attributesOf(control);
  const targets = settings.map(({ name, value }) => {
    const named = matching(all, name);
    const exact = named.filter((owned) => fullName(owned) === name);
    const found = exact.length > 0 ? exact : named;
    const [target] = found;
    if (found.length > 1 || target === undefined) {
      throw new BcacheError(
        "InvalidArgument",
        `several devices have ${name}; say which: ${found.map(fullName).join(", ")}`,
      );
    }
    if (!target.attribute.writable) {
      throw new BcacheError("ReadOnly", `the attribute ${fullName(target)} cannot be set`);
    }
    return { target, value };
  });
  const results = [];
  for (const { target, value } of targets) {
    const after = await control.setAttribute(target.device, target.attribute.name, value);
    results.push({ name: fullName(target), value: after.value });
  }
  return results;
}

/** `get MOUNTPOINT [NAME]`: a value alone; or, when several match or all are asked for, a table. */
export async function runGet(
  program: Program,
  options: { mountPoint: string; name: string | undefined; json: boolean },
): Promise<void> {
  const all = await attributesOf(await findMount(program, options.mountPoint));
  const found = options.name === undefined ? all : matching(all, options.name);
  if (options.json) {
    const values = found.map((owned) => ({
      device: owned.device ?? null,
      ...owned.attribute,
    }));
    program.out(`${JSON.stringify(values, null, 2)}\n`);
    return;
  }
  const [only] = found;
  if (options.name !== undefined && found.length === 1 && only !== undefined) {
    program.out(`${valueText(only.attribute.value)}\n`);
    return;
  }
  program.out(
    table(
      found.flatMap((owned) =>
        linesOf(owned.attribute.value).map((line, at) =>
          at > 0 ? ["", "", line] : [fullName(owned), owned.attribute.writable ? "rw" : "r", line]
        )
      ),
    ),
  );
}

/** A value as scripts read it: as it is, but for what a terminal would take for a command. */
function valueText(value: string): string {
  return value.split(/([\n\t])/).map((part) => /^[\n\t]$/.test(part) ? part : printable(part)).join(
    "",
  );
}

/** A value of several lines with tabs, as some of sysfs are, in lines that line up. */
function linesOf(value: string): string[] {
  return value.trimEnd().split("\n").map((line) => {
    let shown = "";
    for (const [at, part] of line.split("\t").entries()) {
      if (at > 0) shown = shown.padEnd((Math.floor(shown.length / TAB_COLUMNS) + 1) * TAB_COLUMNS);
      shown += printable(part);
    }
    return shown;
  });
}

/** `set MOUNTPOINT NAME VALUE`: prints the value as it reads afterwards. */
export async function runSet(
  program: Program,
  options: { mountPoint: string; name: string; value: string },
): Promise<void> {
  const control = await findMount(program, options.mountPoint);
  const [result] = await applySettings(control, [options]);
  program.out(`${valueText(result?.value ?? "")}\n`);
}
