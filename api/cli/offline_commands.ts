/** The commands that work on devices which nobody has mounted, and their options. */
import { Argument, type Command, Option } from "commander";
import { DUMP_PARTS, type DumpPart } from "../../lib/offline/dump.ts";
import type { VolumeName } from "../../lib/offline/extract_target.ts";
import { parseUuid } from "../../lib/ondisk/uuid.ts";
import { oneCache, refuseTwice } from "./offline_devices.ts";
import { type Program, UsageError } from "./program.ts";

interface DeviceFlags {
  cache?: string[];
  backing?: string[];
  json?: boolean;
}

interface ExtractFlags extends DeviceFlags {
  output?: string;
  volume?: string;
  force?: boolean;
  rescue?: boolean;
}

/** Adds `check`, `dump`, `writeback` and `extract`. What they run is loaded when they do. */
export function addOffline(parser: Command, program: Program): void {
  addCheck(parser, program);
  addDump(parser, program);
  addWriteback(parser, program);
  addExtract(parser, program);
}

function withDevices(
  command: Command,
  aboutBacking: string = "a backing device; may be repeated",
): Command {
  return command
    .option("-C, --cache <path>", "the cache device", collect)
    .option("-B, --backing <path>", aboutBacking, collect)
    .option("--json", "print JSON");
}

function collect(value: string, previous: string[] | undefined): string[] {
  return [...(previous ?? []), value];
}

function addCheck(parser: Command, program: Program): void {
  withDevices(parser.command("check"))
    .description("check a cache set for consistency; changes nothing, exit status 4 for errors")
    .action(async (flags: DeviceFlags) => {
      const { backing: backingPaths = [], json = false } = flags;
      const cachePath = oneCache(flags.cache);
      refuseTwice([cachePath, ...backingPaths]);
      const { runCheck } = await import("./check.ts");
      await runCheck(program, { cachePath, backingPaths, json });
    });
}

function addDump(parser: Command, program: Program): void {
  parser.command("dump")
    .description("print a structure of a cache device, as far as it can be read")
    .argument("<device>", "the cache device")
    .addArgument(new Argument("<structure>", "what of it to print").choices(DUMP_PARTS))
    .option("--json", "print JSON, a line for each item")
    .action(async (path: string, part: DumpPart, flags: { json?: boolean }) => {
      const { runDump } = await import("./dump.ts");
      await runDump(program, { path, part, json: flags.json ?? false });
    });
}

function addWriteback(parser: Command, program: Program): void {
  withDevices(parser.command("writeback"))
    .description("write all dirty data back without mounting")
    .action(async (flags: DeviceFlags) => {
      const { backing: backingPaths = [], json = false } = flags;
      const cachePath = oneCache(flags.cache);
      if (backingPaths.length === 0) {
        throw new UsageError("no backing device was given; add --backing BACKING");
      }
      refuseTwice([cachePath, ...backingPaths]);
      const { runWriteback } = await import("./writeback.ts");
      await runWriteback(program, { cachePath, backingPaths, json });
    });
}

function addExtract(parser: Command, program: Program): void {
  withDevices(parser.command("extract"), "the backing device")
    .description("write the image of a cached device, cache and backing merged; changes neither")
    .option("-o, --output <path>", "the image to write, sparse")
    .addOption(
      new Option("--volume <name>", "a flash-only volume: its number, UUID, label or bcacheN"),
    )
    .option("--force", "replace the output if it exists")
    .option("--rescue", "take what can be read of a damaged set; exit status 4, doubts are listed")
    .action(async (flags: ExtractFlags) => {
      const { backing = [], volume, output, force = false, rescue = false, json = false } = flags;
      const cachePath = oneCache(flags.cache);
      if (output === undefined) throw new UsageError("no output was given; add -o IMAGE");
      refuseTwice([cachePath, ...backing]);
      if (backing.length + (volume === undefined ? 0 : 1) !== 1) {
        throw new UsageError("name one source: --backing BACKING, or --volume NAME");
      }
      const of = volume === undefined ? { backingPath: backing[0]! } : { volume: volumeOf(volume) };
      const { runExtract } = await import("./extract.ts");
      await runExtract(program, { cachePath, of, outputPath: output, force, rescue, json });
    });
}

/** What is neither a number nor a UUID is a label or `bcacheN`: the cache knows which there are. */
function volumeOf(text: string): VolumeName {
  if (/^\d{1,7}$/.test(text)) return Number(text);
  const name = parseUuid(text) ?? text;
  if (name !== "") return name;
  throw new UsageError(
    '--volume "": expected the number, UUID, label or bcacheN of a flash-only volume; ' +
      "`dump CACHE uuids` lists them",
  );
}
