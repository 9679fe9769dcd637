/**
 * What is written while the server is killed, and how it is judged afterwards: blocks by our own
 * journal, fio with its verify state, files on ext4, xfs and btrfs over a loop device.
 */
import { assert, assertEquals, assertGreater } from "@std/assert";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, rmSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { JournalOfWrites } from "../../e2e/support/journal_of_writes.ts";
import {
  attempt,
  isMounted,
  run,
  type Served,
  signalTo,
  type Workshop,
} from "../../e2e/support/workshop.ts";
import { verifyVersions } from "./files_in_versions.ts";
import { scriptUnder, THIS_RUNTIME } from "./runtimes.ts";

const WRITE_LIMIT_MS = 30_000;
const CLEAR_LIMIT_MS = 20_000;
const LOSSES_SHOWN = 5;
/** Writes that fio keeps under way. */
const DEPTH = 8;

/** What one cycle is given. */
export interface Cycle {
  readonly number: number;
  readonly random: () => number;
  /** How long the writer writes before the server is killed. */
  readonly writeMs: number;
}

/** Something that writes and judges; it is made once for a cache set and lives for many cycles. */
export interface KillTarget {
  /** Size of the backing file. */
  readonly backingMib: number;
  /** After a mount: everything acknowledged must be there. What is found is the new truth. */
  verify(place: Workshop, served: Served, cycle: Cycle): Promise<void>;
  /** Writes, has the server killed meanwhile, takes down what lies over it. Acknowledgements. */
  writeAndKill(place: Workshop, served: Served, cycle: Cycle): Promise<number>;
  /** After `verify`: lets go of the file, so that it can be unmounted. */
  leave?(place: Workshop): Promise<void>;
}

function assertNoLosses(losses: readonly string[]): void {
  assertEquals(losses.slice(0, LOSSES_SHOWN), [], `${losses.length} losses`);
}

/** fsynced batches, or writes with O_DIRECT and O_DSYNC, in turn. */
export class Blocks implements KillTarget {
  readonly backingMib = 48;
  // Few enough to be overwritten often.
  #truth = new JournalOfWrites(8192, 4096);

  async verify(_place: Workshop, served: Served): Promise<void> {
    await Promise.resolve();
    assertNoLosses(this.#truth.verify(served.file).losses);
  }

  /** The killer is a process because the writes block this one. */
  async writeAndKill(_place: Workshop, served: Served, cycle: Cycle): Promise<number> {
    const seconds = (cycle.writeMs / 1000).toFixed(3);
    const killer = spawn("sh", ["-c", `sleep ${seconds}; kill -9 ${served.process.pid}`]);
    const gone = once(killer, "exit");
    const { file } = served;
    const durably = cycle.number % 2 === 1;
    const batches = this.#truth.writeUntilDeath(file, cycle.random, WRITE_LIMIT_MS, durably);
    await gone;
    return batches;
  }
}

/**
 * fio's own power-cut test: it saves which of its O_DSYNC writes completed, has its trigger kill
 * the server, and later verifies these writes from the state it saved.
 */
export class Fio implements KillTarget {
  readonly backingMib = 48;
  #written: number | undefined;
  #acknowledged = 0;

  #job(place: Workshop, served: Served, seed: number, depth: number): string[] {
    return [
      ...["fio", "--name=killed", `--filename=${served.file}`, `--aux-path=${place.folder}`],
      ...["--size=32m", "--rw=randwrite", "--bs=4k", "--ioengine=libaio", `--iodepth=${depth}`],
      ...["--direct=1", "--sync=dsync", "--verify=crc32c", `--randseed=${seed}`],
    ];
  }

  #stateFile(place: Workshop): string {
    return place.path("local-killed-0-verify.state");
  }

  async verify(place: Workshop, served: Served): Promise<void> {
    if (this.#written === undefined) return;
    const how = ["--verify_only", "--verify_state_load=1", "--verify_fatal=1"];
    // One by one: how far to verify fio judges by the reads completed, not by those under way.
    const output = await run(...this.#job(place, served, this.#written, 1), ...how);
    const blocks = Number(/issued rwts: total=(\d+)/.exec(output)?.[1]);
    // Of few writes all may have been under way at the end.
    if (this.#acknowledged <= 2 * DEPTH) return;
    assertGreater(blocks, 0, `fio verified something:\n${output}`);
  }

  async writeAndKill(place: Workshop, served: Served, cycle: Cycle): Promise<number> {
    rmSync(this.#stateFile(place), { force: true });
    const seed = this.#written = cycle.number + 1;
    const trigger = `kill -9 ${served.process.pid}`;
    // fio counts its triggers in whole seconds.
    const how = ["--do_verify=0", "--verify_state_save=1", "--trigger-timeout=1"];
    const command = [...this.#job(place, served, seed, DEPTH), ...how, `--trigger=${trigger}`];
    const { stdout, stderr } = await attempt(command, { limitMs: WRITE_LIMIT_MS });
    assert(existsSync(this.#stateFile(place)), `fio saved its state:\n${stdout}${stderr}`);
    this.#acknowledged = Number(/issued rwts: total=\d+,(\d+)/.exec(stdout)?.[1] ?? 0);
    return this.#acknowledged;
  }
}

const FILE_SYSTEMS = {
  ext4: { mib: 64, make: ["mkfs.ext4", "-q"], check: ["e2fsck", "-fn"] },
  xfs: { mib: 320, make: ["mkfs.xfs", "-q"], check: ["xfs_repair", "-n"] },
  btrfs: { mib: 160, make: ["mkfs.btrfs", "-q"], check: ["btrfs", "check", "--readonly"] },
} as const;
export type FileSystem = keyof typeof FILE_SYSTEMS;

const FILES = 48;

/** Files replaced and synced on a file system over a loop device, with direct I/O and without. */
export class Files implements KillTarget {
  readonly backingMib: number;
  readonly #system: FileSystem;
  #versions: number[] = Array.from({ length: FILES }, () => 0);
  #made = false;
  #loop = "";
  #folder = "";

  constructor(system: FileSystem) {
    this.#system = system;
    this.backingMib = FILE_SYSTEMS[system].mib + 1;
  }

  async verify(place: Workshop, served: Served, cycle: Cycle): Promise<void> {
    const { make, check } = FILE_SYSTEMS[this.#system];
    this.#loop = await place.attachLoop(served.file, { direct: cycle.number % 4 < 2 });
    if (!this.#made) await run(...make, this.#loop);
    this.#made = true;
    // Mounting replays the file system's journal; the check comes after it.
    this.#folder = await place.mountFileSystem(this.#loop, "fs");
    assertNoLosses(verifyVersions(this.#folder, this.#versions));
    await run("umount", this.#folder);
    await run(...check, this.#loop);
  }

  async writeAndKill(place: Workshop, served: Served, cycle: Cycle): Promise<number> {
    await run("mount", this.#loop, this.#folder);
    const script = join(import.meta.dirname!, "files_in_versions.ts");
    const [program, ...before] = scriptUnder(THIS_RUNTIME, script);
    const words = [this.#folder, String(cycle.random()), ...this.#versions.map(String)];
    const writer = spawn(program!, [...before, ...words], { stdio: ["ignore", "pipe", "inherit"] });
    let said = "";
    writer.stdout.on("data", (part) => said += String(part));
    const written = once(writer, "close");
    const startedMs = performance.now();
    while (!said.includes("\n") && performance.now() - startedMs < WRITE_LIMIT_MS) await sleep(5);
    await sleep(cycle.writeMs);
    signalTo(served.process, "SIGKILL");
    const patience = setTimeout(() => writer.kill("SIGKILL"), WRITE_LIMIT_MS);
    await written;
    clearTimeout(patience);
    const lines = said.split("\n").filter((line) => /^\d+ \d+$/.test(line));
    for (const line of lines) {
      const [slot, version] = line.split(" ").map(Number);
      this.#versions[slot!] = version!;
    }
    await this.#clear(place);
    return lines.length;
  }

  async leave(place: Workshop): Promise<void> {
    await place.detachLoop(this.#loop);
  }

  /** From the top down: the file system, which cannot write any more, then the loop device. */
  async #clear(place: Workshop): Promise<void> {
    const { status } = await attempt(["umount", this.#folder], { limitMs: CLEAR_LIMIT_MS });
    if (status !== 0 && isMounted(this.#folder)) {
      await attempt(["umount", "-l", this.#folder], { limitMs: CLEAR_LIMIT_MS });
    }
    await place.detachLoop(this.#loop);
  }
}
