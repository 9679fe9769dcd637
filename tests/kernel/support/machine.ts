/**
 * A virtual machine with Debian's kernel, emulated, so that it runs anywhere; a boot takes some
 * seconds. It gets image files as disks, each found in the guest by its serial number, runs one
 * script and says what that printed. A power cut is the end of the emulator by SIGKILL at the
 * moment the script prints a marker: what the guest has in memory is lost, what its disks were
 * given is not.
 */
import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { whenInterrupted } from "../../support/interrupted.ts";
import { initramfs } from "./initramfs.ts";

const KERNEL_FOLDER = join(import.meta.dirname!, "../../../node_modules/.cache/bcache-kernel");
const LIMIT_MS = 180_000;
const TROUBLE = /bcache: .*([Ee]rror|corrupt|bad |panic)|BUG|Oops|WARNING:|I\/O error|Call Trace/;
/** Said of every set that was not shut down by the kernel itself, or that has no errors at all. */
const NO_TROUBLE = /error recovery|bch_cached_dev_error|io_error_/;

export interface GuestDisk {
  /** At most 20 characters. */
  readonly serial: string;
  readonly path: string;
  /** A file that gets a log of all that the guest writes and flushes; see write_log.ts. */
  readonly logPath?: string;
}

export interface BootOptions {
  readonly disks: readonly GuestDisk[];
  readonly script: string;
  /** Cut the power when the script prints `marker WORD`. */
  readonly cutAt?: string;
}

/** @returns the lines the script printed. @throws when anything in the guest went wrong. */
export async function boot(options: BootOptions): Promise<string[]> {
  if (!existsSync(join(KERNEL_FOLDER, "version"))) {
    throw new Error(
      "there is no Linux kernel to test against; run: sh tests/support/install.sh kernel " +
        "(it downloads Debian's; it needs root, apt-get and the network)",
    );
  }
  const work = mkdtempSync(join(tmpdir(), "bcache-fuse-machine-"));
  const removeWork = () => rmSync(work, { recursive: true, force: true });
  const handled = whenInterrupted(removeWork);
  try {
    const initrd = join(work, "initrd");
    writeFileSync(initrd, initramfs(KERNEL_FOLDER, options.script));
    const console = join(work, "console");
    const lines = await run(commandOf(options.disks, initrd, console), options.cutAt);
    const trouble = [
      ...lines.filter((line) => line.startsWith("error:")),
      ...readFileSync(console, "latin1").split("\n")
        .filter((line) => TROUBLE.test(line) && !NO_TROUBLE.test(line)),
    ];
    const last = options.cutAt === undefined ? "end of the script" : `marker ${options.cutAt}`;
    const ended = lines.includes(last) || lines.some((line) => line.startsWith("different "));
    if (trouble.length === 0 && ended) return lines;
    const tail = readFileSync(console, "latin1").split("\n").slice(-30);
    throw new Error(
      ["the guest had trouble:", ...trouble, "it printed:", ...lines, "its kernel:", ...tail]
        .join("\n  "),
    );
  } finally {
    handled();
    removeWork();
  }
}

function commandOf(disks: readonly GuestDisk[], initrd: string, console: string): string[] {
  const kernel = ["vmlinux", "vmlinuz"].map((name) => join(KERNEL_FOLDER, name))
    .find((path) => existsSync(path))!;
  // An emulated timer on a busy machine ticks late, which is no reason to distrust it.
  const words = "console=ttyS1 quiet panic=-1 oops=panic nokaslr mitigations=off " +
    "no_timer_check rdinit=/init";
  const command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"];
  command.push("-no-reboot", "-machine", "pc", "-cpu", "max", "-accel", "tcg", "-m", "512");
  command.push("-kernel", kernel, "-initrd", initrd, "-append", words);
  command.push("-chardev", "stdio,id=script,signal=off", "-serial", "chardev:script");
  command.push("-serial", `file:${console}`);
  disks.forEach(({ serial, path, logPath }, index) => {
    if (logPath !== undefined) {
      const file = (name: string) => ({ driver: "file", filename: name });
      const node = { driver: "blklogwrites", "node-name": `d${index}`, log: file(logPath) };
      command.push("-blockdev", JSON.stringify({ ...node, file: file(path) }));
      command.push("-device", `virtio-blk-pci,drive=d${index},serial=${serial}`);
      return;
    }
    // The images are thrown away afterwards: nothing has to reach this machine's own disk.
    const file = `file=${path.replaceAll(",", ",,")},format=raw,if=none,id=d${index}`;
    command.push("-drive", `${file},cache=unsafe,discard=unmap`);
    command.push("-device", `virtio-blk-pci,drive=d${index},serial=${serial}`);
  });
  return command;
}

async function run(command: readonly string[], cutAt: string | undefined): Promise<string[]> {
  const [program, ...args] = command;
  const child = spawn(program!, args, { stdio: ["ignore", "pipe", "pipe"] });
  const kill = () => child.kill("SIGKILL");
  process.once("exit", kill); // A test that is stopped leaves no machine running.
  const watchdog = setTimeout(kill, LIMIT_MS);
  let output = "";
  let complaints = "";
  child.stdout.setEncoding("latin1").on("data", (text: string) => {
    output += text;
    if (cutAt !== undefined && output.includes(`marker ${cutAt}\n`)) kill();
  });
  child.stderr.setEncoding("latin1").on("data", (text: string) => complaints += text);
  try {
    await new Promise<void>((resolve, reject) => {
      child.once("error", (error) => {
        reject(
          new Error(`QEMU does not start (${error.message}); tests/support/install.sh kernel`),
        );
      });
      child.once("close", () => resolve());
    });
  } finally {
    clearTimeout(watchdog);
    process.off("exit", kill);
  }
  if (complaints !== "") throw new Error(`QEMU: ${complaints.trim()}`);
  return output.replaceAll("\r", "").split("\n").filter((line) => line !== "");
}
