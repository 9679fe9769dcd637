/** `dump`: prints a structure of a cache device, item by item; also of one that is in use. */
import { dump, type DumpItem, type DumpPart } from "../../lib/offline/dump.ts";
import { counted, printable } from "./format.ts";
import { OfflineDevices, refuseBackingDevice } from "./offline_devices.ts";
import { DamageError, type Program } from "./program.ts";

export interface DumpCommand {
  readonly path: string;
  readonly part: DumpPart;
  readonly json: boolean;
}

/** Standard output is waited for after this much. */
const WAIT_BYTES = 256 * 1024;

/** Prints what can be read; throws DamageError when something cannot. */
export async function runDump(program: Program, command: DumpCommand): Promise<void> {
  const devices = new OfflineDevices();
  let unreadable = 0;
  let text = "";
  const emit = async (item: DumpItem): Promise<void> => {
    if (item.unreadable) unreadable += item.places ?? 1;
    text += command.json
      ? `${JSON.stringify(item.json)}\n`
      : `${item.text.split("\n").map(shown).join("\n")}\n`;
    if (text.length < WAIT_BYTES) return;
    program.out(text);
    text = "";
    await program.flushed();
  };
  try {
    const device = await devices.file(command.path, { alone: false });
    if (command.part !== "superblock") {
      const advice = `it has no ${command.part}: name the cache device it is attached to, or see ` +
        `its superblock with bcache-fuse show ${device.name}`;
      await refuseBackingDevice(device, advice);
    }
    await dump(device, command.part, emit);
  } finally {
    program.out(text);
    await devices.close();
  }
  if (unreadable === 0) return;
  const places = counted(unreadable, "place");
  throw new DamageError(`${command.path}: ${places} could not be read; see "unreadable" above`);
}

/** A line, safe to print; tabs of the superblock's text stay. */
function shown(line: string): string {
  return line.split("\t").map(printable).join("\t");
}
