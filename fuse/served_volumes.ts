/**
 * The volumes of the engine as the mounted directory shows them, kept alike while they come and
 * go; and the refusal to take a file, or a part of it, away from who has it open.
 */
import { BcacheError } from "../lib/base/errors.ts";
import type { Clock } from "../lib/base/runtime.ts";
import { Signal } from "../lib/base/sync.ts";
import { parseSizeBytes } from "../lib/base/units.ts";
import type { BlockVolume } from "../lib/cache/ports.ts";
import type { Engine } from "./engine.ts";
import { accessOf, type FileAccess } from "./file_access.ts";
import type { Filesystem, FilesystemChange } from "./filesystem.ts";
import type { ControlCall, ControlMethod, FromWorker, VolumeInfo } from "./messages.ts";

/** The kernel tells of a close a little after close(2) has returned. */
const RELEASE_PATIENCE_MS = 250;
const RELEASE_STEP_MS = 5;

/** Their first argument is a device's name, the second may have `force`. */
const TAKES_FILE_AWAY: readonly ControlMethod[] = ["stop", "destroyVolume"];
/** Attributes that do the same when they are written; of the set: to all files. */
const ATTRIBUTES_THAT_DO: readonly unknown[] = ["stop", "unregister"];

type Call = Pick<ControlCall, "method" | "args">;

/** The name of the file that a call takes away, "" for all of them; undefined: it takes none. */
function fileTaken({ method, args }: Call): string | undefined {
  const [name, option] = args;
  if (method === "setAttribute" && ATTRIBUTES_THAT_DO.includes(option)) {
    return typeof name === "string" ? name : "";
  }
  if (!TAKES_FILE_AWAY.includes(method) || typeof name !== "string") return undefined;
  return isForced(option) ? undefined : name;
}

function isForced(option: unknown): boolean {
  return (option as { force?: boolean } | undefined)?.force === true;
}

/** The name of the file that a call gives another size; undefined: none, or by force. */
function fileResized({ method, args }: Call): { name: string; sizeBytes: number } | undefined {
  const [name, second, third] = args;
  if (typeof name !== "string") return undefined;
  if (method === "resizeVolume") {
    return isForced(third) ? undefined : { name, sizeBytes: Number(second) };
  }
  if (method !== "setAttribute" || second !== "size") return undefined;
  try {
    return { name, sizeBytes: parseSizeBytes(String(third), "size") };
  } catch {
    return undefined; // The engine says what is wrong with it.
  }
}

/** What does the same by force as writing an attribute, which takes no force. */
const FORCE_OF_ATTRIBUTE = new Map<unknown, string>([
  ["size", 'bcache-fuse volume resize --force, over HTTP "force":true'],
  ["stop", 'bcache-fuse stop --force, over HTTP "force":true'],
  ["unregister", "bcache-fuse volume destroy --force, over HTTP ?force=true"],
]);

/** How to do by force what was refused, as the end of a sentence; "" when there is no way. */
export function byForce({ method, args }: Call): string {
  if (method !== "setAttribute") return ", or use --force";
  const [name, attribute] = args;
  const force = name === undefined ? undefined : FORCE_OF_ATTRIBUTE.get(attribute);
  return force === undefined ? "" : `, or do it by force (${force})`;
}

const IS_OPEN = ": is open";

/** The file because of which a call was refused here; the other thread finds out who has it. */
export function fileOfRefusal(error: Error): string | undefined {
  if (!(error instanceof BcacheError) || error.code !== "Busy") return undefined;
  return error.message.endsWith(IS_OPEN) ? error.message.slice(0, -IS_OPEN.length) : undefined;
}

export function volumeInfo({ name, sizeBytes }: BlockVolume): VolumeInfo {
  return { name, sizeBytes };
}

export interface ServedVolumesOptions {
  /** Other users may do with a file what they may do with the device behind it. */
  readonly allowOther: boolean;
  /** Keeps the thread from blocking while something is under way. */
  readonly track: (work: Promise<void>) => Promise<void>;
}

/**
 * Gives the files that are only for who mounted the owner and the permissions of the devices behind
 * them, a volume's those of the cache. Returns the nodes that changed.
 */
async function admitOthers(engine: Engine, filesystem: Filesystem): Promise<number[]> {
  const before = filesystem.closedVolumes;
  const { cachePath, devices } = await engine.status();
  const paths = new Map(devices.map(({ name, backingPath }) => [name, backingPath]));
  const accesses = new Map<BlockVolume, FileAccess>();
  for (const volume of before) {
    // What went meanwhile may have left its name to another.
    if (!engine.volumes.includes(volume)) continue;
    const access = await accessOf(paths.get(volume.name) ?? cachePath);
    if (access !== undefined) accesses.set(volume, access);
  }
  return filesystem.admit(accesses);
}

export class ServedVolumes {
  #clock: Clock;
  #options: ServedVolumesOptions;
  #post: (message: FromWorker) => void;
  #engine: Engine | undefined;
  #filesystem: Filesystem | undefined;
  #untold = 0;
  #toldSignal = new Signal();

  constructor(
    clock: Clock,
    post: (message: FromWorker) => void,
    options: ServedVolumesOptions,
  ) {
    this.#clock = clock;
    this.#post = post;
    this.#options = options;
  }

  /** From now on `filesystem` shows what `engine` has. Nothing is mounted yet. */
  async serve(engine: Engine, filesystem: Filesystem): Promise<void> {
    this.#engine = engine;
    this.#filesystem = filesystem;
    if (this.#options.allowOther) await admitOthers(engine, filesystem);
  }

  /** The engine's volumes changed. */
  refresh(): void {
    if (this.#engine === undefined || this.#filesystem === undefined) return;
    this.#tell(this.#filesystem.update(this.#engine.volumes));
    if (!this.#options.allowOther || this.#filesystem.closedVolumes.length === 0) return;
    this.#untold++; // Whoever attached a device waits until others may use its file.
    void this.#options.track(this.#admitLater(this.#engine, this.#filesystem));
  }

  #tell(change: FilesystemChange): void {
    this.#untold++;
    this.#post({ type: "volumes", volumes: this.#engine!.volumes.map(volumeInfo), change });
  }

  /** New files are for who mounted until it is known who else may use them. */
  async #admitLater(engine: Engine, filesystem: Filesystem): Promise<void> {
    try {
      const resized = await admitOthers(engine, filesystem);
      if (resized.length > 0) this.#tell({ gone: [], resized });
    } catch (error) {
      // An engine that fails right now has no status: its new file stays for who mounted.
      if (!(error instanceof BcacheError)) throw error;
    } finally {
      this.noteTold();
    }
  }

  /** The kernel knows of one more change. */
  noteTold(): void {
    this.#untold--;
    this.#toldSignal.raise();
  }

  /** Resolves when the kernel knows of all changes so far. */
  async told(): Promise<void> {
    while (this.#untold > 0) await this.#toldSignal.wait();
  }

  /**
   * Rejects with Busy when `call` takes a file away that somebody has open, or makes it smaller,
   * unless by force.
   */
  async refuseBusy(call: ControlCall): Promise<void> {
    const taken = fileTaken(call) ?? this.#fileCut(call);
    if (taken === undefined) return;
    let open: string | undefined;
    for (let waitedMs = 0; waitedMs < RELEASE_PATIENCE_MS; waitedMs += RELEASE_STEP_MS) {
      open = this.#openFile(taken);
      if (open === undefined) return;
      await this.#clock.sleep(RELEASE_STEP_MS);
    }
    throw new BcacheError("Busy", `${open}${IS_OPEN}`);
  }

  /** The file that a call makes smaller. */
  #fileCut(call: ControlCall): string | undefined {
    const resized = fileResized(call);
    if (resized === undefined) return undefined;
    const volume = this.#engine?.volumes.find(({ name }) => name === resized.name);
    return volume !== undefined && resized.sizeBytes < volume.sizeBytes ? volume.name : undefined;
  }

  /** The file of that name, any for "", if it is open. */
  #openFile(name: string): string | undefined {
    const files = this.#filesystem;
    const names = name === "" ? files?.volumes.map((volume) => volume.name) ?? [] : [name];
    return names.find((each) => files !== undefined && files.opens(each) > 0);
  }
}
