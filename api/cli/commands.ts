/** The commands and their options: what the argument parser knows, and nothing it does not. */
import { Command, Option } from "commander";
import { CACHE_MODES, type CacheMode } from "../../lib/cache/ports.ts";
import { parseHostPort } from "../http/serve.ts";
import { parseSetting, runGet, runSet } from "./attributes.ts";
import { runAttach, runDetach, runStop } from "./devices.ts";
import { reportReady, startDaemon } from "./daemon.ts";
import { type MakeOptions, makeRequest } from "./make.ts";
import { type MountCommand, runMount } from "./mount.ts";
import { addOffline } from "./offline_commands.ts";
import type { Program } from "./program.ts";
import { asUsage, UsageError } from "./program.ts";
import { runShow } from "./show.ts";
import { runStatus } from "./status.ts";
import { runFlush, runUnmount } from "./unmount.ts";
import {
  runForget,
  runUuids,
  runVolumeCreate,
  runVolumeDestroy,
  runVolumeResize,
} from "./volumes.ts";

export const HTTP_DEFAULT = "127.0.0.1:8380";

/** Builds the parser of all commands. Its actions run the commands. */
export function createParser(program: Program): Command {
  const parser = new Command("bcache-fuse")
    .description("Linux bcache as a userspace program: a cache on SSD before slower storage")
    .version(program.version, "-V, --version", "print the version")
    .helpOption("-h, --help", "print help")
    .helpCommand(false)
    .exitOverride()
    .configureOutput({
      writeOut: (text) => program.out(text),
      writeErr: (text) => program.err(text),
      outputError: () => {}, // main.ts prints errors, all in one form.
    });
  addMake(parser, program);
  addShow(parser, program);
  addMount(parser, program);
  addUnmountAndFlush(parser, program);
  addDevices(parser, program);
  addVolumes(parser, program);
  addUuids(parser, program);
  addStatus(parser, program);
  addGetAndSet(parser, program);
  addOffline(parser, program);
  addHelp(parser, program);
  parser.hook("preAction", (_, command) => refuseEmptyPaths(command));
  return parser;
}

/** The arguments that are paths, or lead to one; options say so as `<path>`. */
const PATH_ARGUMENTS = ["mountpoint", "device", "backing", "cache"];

/** An empty path would be the current directory. */
function refuseEmptyPaths(command: Command): void {
  const given: Array<[string, unknown]> = [];
  command.registeredArguments.forEach((argument, at) => {
    if (!PATH_ARGUMENTS.includes(argument.name())) return;
    given.push([`<${argument.name()}>`, command.processedArgs[at]]);
  });
  for (const option of command.options.filter(({ flags }) => flags.includes("<path"))) {
    given.push([`--${option.name()}`, command.getOptionValue(option.attributeName())]);
  }
  for (const [name, value] of given) {
    if (value !== "" && !(Array.isArray(value) && value.includes(""))) continue;
    throw new UsageError(`${name} is empty; expected a path`);
  }
}

/** `help volume create` as well as `volume create --help`. */
function addHelp(parser: Command, program: Program): void {
  parser.command("help")
    .description("print help, of a command if one is named")
    .argument("[command...]")
    .action((names: readonly string[]) => {
      let found = parser;
      for (const name of names) {
        const next = found.commands.find((each) =>
          each.name() === name || each.aliases().includes(name)
        );
        if (next === undefined) throw new UsageError(`unknown command '${names.join(" ")}'`);
        found = next;
      }
      program.out(found.helpInformation());
    });
}

function addMake(parser: Command, program: Program): void {
  parser.command("make")
    .description("format a cache device, backing devices, or both as one set")
    .option("-C, --cache <path...>", "format a cache device")
    .option("-B, --bdev <path...>", "format backing devices")
    .addOption(new Option("--backing <path...>", "the same as --bdev"))
    .option("-b, --bucket <size>", "bucket size: k, M, G and T are powers of 1024")
    .option("-w, --block <size>", "block size, 512 to 4k")
    .option("-o, --data-offset <sectors>", "where data begins on a backing device")
    .option("--cset-uuid <uuid>", "UUID of the cache set")
    .option("--writeback", "enable writeback")
    .option("--discard", "enable discards")
    .option("--cache-replacement-policy <policy>", "lru, fifo or random")
    .addOption(new Option("--cache_replacement_policy <policy>").hideHelp())
    .option("--label <text>", "label of the backing device, at most 32 bytes")
    .option("--sidecar", "leave the image as it is: keep its superblock in IMAGE.bcache beside it")
    .option("--size <size>", "create missing files, sparse, of this size")
    .option("--force", "overwrite what is there: a bcache, file system or partition table")
    .addOption(new Option("--wipe-bcache", "the same as --force"))
    .action(async (options: MakeOptions & Record<string, unknown>) => {
      program.out(await program.parts.make(makeRequest(joinAliases(options))));
    });
}

/** Options that have two names, as one. commander names `--cache_replacement_policy` as it is. */
function joinAliases(options: MakeOptions & Record<string, unknown>): MakeOptions {
  const { backing, wipeBcache, cache_replacement_policy: policy, ...rest } = options;
  const bdev = [...(rest.bdev ?? []), ...(Array.isArray(backing) ? backing as string[] : [])];
  return {
    ...rest,
    ...(bdev.length === 0 ? {} : { bdev }),
    ...(wipeBcache === true ? { force: true } : {}),
    ...(typeof policy === "string" ? { cacheReplacementPolicy: policy } : {}),
  };
}

function addShow(parser: Command, program: Program): void {
  parser.command("show")
    .description("print the superblock of a device, as bcache-super-show does")
    .argument("<device>")
    .option("--json", "print JSON")
    .action((device: string, options: { json?: boolean }) =>
      runShow(program, { path: device, json: options.json ?? false })
    );
}

interface MountFlags {
  cache?: string[];
  backing?: string[];
  cacheMode?: CacheMode;
  http: string;
  daemon?: boolean;
  readOnly?: boolean;
  changedImage?: "trust" | "drop";
  allowOther?: boolean;
  set?: string[];
}

function addMount(parser: Command, program: Program): void {
  parser.command("mount")
    .description("mount a cache set: MOUNTPOINT/bcache0, ... in the order of --backing")
    .argument("<mountpoint>", "an empty directory")
    .option("-C, --cache <path>", "the cache device", collect)
    .option("-B, --backing <path>", "a backing device; may be repeated", collect)
    .addOption(
      new Option("--cache-mode <mode>", "set the cache mode of the devices").choices(CACHE_MODES),
    )
    .option("--http <host:port>", "where HTTP listens, or off", HTTP_DEFAULT)
    .option("--daemon", "return when the files are ready, go on in the background")
    .option("--read-only", "refuse writes")
    .addOption(
      new Option(
        "--changed-image <how>",
        "an image that was changed behind its sidecar: trust what is cached of it, or drop that",
      ).choices(["trust", "drop"]),
    )
    .option("--allow-other", "let other users use the files whose images they may use")
    .option("--set <name=value>", "set an attribute; may be repeated", collect)
    .action(async (mountPoint: string, flags: MountFlags) => {
      await mount(program, mountCommand(mountPoint, flags), flags.daemon ?? false);
    });
}

function collect(value: string, previous: string[] | undefined): string[] {
  return [...(previous ?? []), value];
}

function mountCommand(mountPoint: string, flags: MountFlags): MountCommand {
  const { cache = [], backing: backingPaths = [] } = flags;
  const [cachePath] = cache;
  if (cachePath === undefined) throw new UsageError("no cache device was given; add --cache CACHE");
  if (cache.length > 1) {
    throw new UsageError(
      `a cache set has one cache device, ${cache.length} were given; give --cache once`,
    );
  }
  const paths = [cachePath, ...backingPaths];
  const twice = paths.find((path, at) => paths.indexOf(path) !== at);
  if (twice !== undefined) throw new UsageError(`${twice} is named twice; name each device once`);
  return {
    cachePath,
    backingPaths,
    mountPoint,
    cacheMode: flags.cacheMode,
    http: flags.http === "off" ? undefined : asUsage(() => parseHostPort(flags.http)),
    readOnly: flags.readOnly ?? false,
    changedImage: flags.changedImage,
    allowOther: flags.allowOther ?? false,
    settings: (flags.set ?? []).map(parseSetting),
  };
}

async function mount(program: Program, command: MountCommand, daemon: boolean): Promise<void> {
  if (daemon && !program.isDaemon) {
    program.out(`${await startDaemon(program, command)}\n`);
    return;
  }
  await runMount(program, command, (ready) => {
    if (program.isDaemon) reportReady(program, ready);
    else program.out(`${ready.line}; Ctrl-C unmounts\n`);
  });
}

function addUnmountAndFlush(parser: Command, program: Program): void {
  parser.command("unmount").alias("umount")
    .description("unmount, and wait until all is written")
    .argument("<mountpoint>")
    .option("--flush", "first write all dirty data back to the backing devices")
    .option("--force", "also when files are open: they are taken away from who uses them")
    .action(async (mountPoint: string, flags: { flush?: boolean; force?: boolean }) => {
      const { flush = false, force = false } = flags;
      await runUnmount(program, { mountPoint, flush, force });
    });
  parser.command("flush")
    .description("write all dirty data back to the backing devices")
    .argument("<mountpoint>")
    .action((mountPoint: string) => runFlush(program, { mountPoint }));
}

function addDevices(parser: Command, program: Program): void {
  parser.command("attach")
    .description("attach a backing device to a running set: a file for it appears")
    .argument("<mountpoint>")
    .argument("<backing>", "a backing device, or an image with its sidecar")
    .option("--force", "also one that was made for another set and never had a cache")
    .action((mountPoint: string, backingPath: string, flags: { force?: boolean }) =>
      runAttach(program, { mountPoint, backingPath, force: flags.force ?? false })
    );
  parser.command("detach")
    .description("write a device's dirty data back and take it out of the set; it goes on uncached")
    .argument("<mountpoint>")
    .argument("<device>", "bcache0, ...")
    .action((mountPoint: string, device: string) => runDetach(program, { mountPoint, device }));
  parser.command("stop")
    .description("stop serving a device: its file disappears, dirty data stays in the cache")
    .argument("<mountpoint>")
    .argument("<device>", "bcache0, ...")
    .option("--force", "also when its file is open, or cannot be flushed")
    .action((mountPoint: string, device: string, flags: { force?: boolean }) =>
      runStop(program, { mountPoint, device, force: flags.force ?? false })
    );
}

function addVolumes(parser: Command, program: Program): void {
  const volume = parser.command("volume")
    .description("volumes that live on the cache alone, without a backing device")
    .helpCommand(false);
  volume.command("create")
    .description("make one: a file for it appears; space is taken as it is written")
    .argument("<mountpoint>")
    .argument("<size>", "k, M, G and T are powers of 1024")
    .option("--label <text>", "at most 32 bytes", "")
    .action((mountPoint: string, size: string, { label }: { label: string }) =>
      runVolumeCreate(program, { mountPoint, size, label })
    );
  volume.command("resize")
    .description("change its size; data behind the end of a smaller one is given up by force only")
    .argument("<mountpoint>")
    .argument("<volume>", "bcache1, ...")
    .argument("<size>", "k, M, G and T are powers of 1024")
    .option("--force", "also when that gives up data behind the new end, or its file is open")
    .action((mountPoint: string, name: string, size: string, flags: { force?: boolean }) =>
      runVolumeResize(program, { mountPoint, volume: name, size, force: flags.force ?? false })
    );
  volume.command("destroy")
    .description("give up a volume and all that is in it")
    .argument("<mountpoint>")
    .argument("<volume>", "bcache1, ...")
    .option("--force", "also when it holds data, or its file is open")
    .action((mountPoint: string, name: string, { force = false }: { force?: boolean }) =>
      runVolumeDestroy(program, { mountPoint, volume: name, force })
    );
}

function addUuids(parser: Command, program: Program): void {
  parser.command("uuids")
    .description("list whose data the cache has: also of devices that are not here")
    .argument("<mountpoint>")
    .option("--json", "print JSON")
    .action((mountPoint: string, { json = false }: { json?: boolean }) =>
      runUuids(program, { mountPoint, json })
    );
  parser.command("forget")
    .description("give up all that is cached of a device that will not return")
    .argument("<mountpoint>")
    .argument("<uuid>", "as uuids lists it")
    .option("--force", "also what is dirty, and so nowhere else")
    .action((mountPoint: string, uuid: string, { force = false }: { force?: boolean }) =>
      runForget(program, { mountPoint, uuid, force })
    );
}

function addStatus(parser: Command, program: Program): void {
  parser.command("status")
    .description("show one mount, or all of this user, and those whose process has ended")
    .argument("[mountpoint]")
    .option("--json", "print JSON")
    .action((mountPoint: string | undefined, flags: { json?: boolean }) =>
      runStatus(program, { mountPoint, json: flags.json ?? false })
    );
}

function addGetAndSet(parser: Command, program: Program): void {
  parser.command("get")
    .description("print an attribute, or all: bcache's sysfs names, bcache0/NAME for one device's")
    .argument("<mountpoint>")
    .argument("[name]")
    .option("--json", "print JSON")
    .action((mountPoint: string, name: string | undefined, flags: { json?: boolean }) =>
      runGet(program, { mountPoint, name, json: flags.json ?? false })
    );
  parser.command("set")
    .description("set an attribute, print it as it reads afterwards")
    .argument("<mountpoint>")
    .argument("<name>")
    .argument("<value>")
    .action((mountPoint: string, name: string, value: string) =>
      runSet(program, { mountPoint, name, value })
    );
}
