/**
 * What is judged, as a table: every case is one cache set that goes from one side to the other
 * and back. Cases that differ in the end of a run on the kernel's side share no boot; all others
 * do, so a table of eight costs three boots.
 */
import type { CacheMode } from "../../../lib/cache/ports.ts";
import { CACHE_MODES } from "../../../lib/cache/ports.ts";
import type { ReplacementPolicy } from "../../../lib/ondisk/superblock.ts";

export interface Case {
  /** Short: the serial numbers of its disks begin with it. */
  readonly id: string;
  /** Who formats the devices, and writes first. */
  readonly maker: "ours" | "kernel";
  readonly mode: CacheMode;
  readonly blockBytes: 512 | 4096;
  readonly bucketKib: number;
  readonly replacement: ReplacementPolicy;
  /** The superblock in a file of its own, joined in front of a plain image for the kernel. */
  readonly sidecar?: boolean;
  /** 0: nothing but a volume on the cache alone. */
  readonly backings: 0 | 1 | 2;
  /** Beside the backing device, if there is one, a volume that lives on the cache alone. */
  readonly flash?: boolean;
  /** How our runs end: closed, killed with SIGKILL between two writes, or by a power cut. */
  readonly ourEnd: "close" | "kill" | "cut";
  /** How the kernel's first run ends: everything stopped, or a power cut. */
  readonly kernelEnd: "stop" | "cut";
  /** Collections copy what is left in sparse buckets, on both sides. */
  readonly moving?: boolean;
}

/**
 * How often the set goes from here to the kernel and back, with every byte compared on both sides:
 * the kernel runs twice, but what it formatted itself was not here before its first run.
 */
export function roundTripsOf(one: Case): number {
  return one.maker === "ours" ? 2 : 1;
}

/** One of each kind: eight cases that between them have every pair of neighbours that matters. */
export const QUICK_CASES: readonly Case[] = [
  quick("q1", "ours", "writeback", 4096, "close", "stop"),
  quick("q2", "ours", "writeback", 512, "kill", "cut"),
  { ...quick("q3", "kernel", "writeback", 4096, "kill", "cut"), flash: true, bucketKib: 128 },
  quick("q4", "kernel", "writethrough", 512, "close", "stop"),
  { ...quick("q5", "ours", "writethrough", 4096, "cut", "cut"), sidecar: true },
  { ...quick("q6", "ours", "writeback", 4096, "cut", "stop"), backings: 2, moving: true },
  { ...quick("q7", "kernel", "writearound", 4096, "close", "cut"), replacement: "fifo" },
  {
    ...quick("q8", "ours", "none", 512, "close", "stop"),
    replacement: "random",
    flash: true,
    bucketKib: 128,
  },
];

function quick(
  id: string,
  maker: Case["maker"],
  mode: CacheMode,
  blockBytes: Case["blockBytes"],
  ourEnd: Case["ourEnd"],
  kernelEnd: Case["kernelEnd"],
): Case {
  const rest = { bucketKib: 32, replacement: "lru", backings: 1 } as const;
  return { id, maker, mode, blockBytes, ourEnd, kernelEnd, ...rest };
}

/** Every maker, mode, block size and end with every other; the rest varies along. */
export function allCases(): Case[] {
  const policies: readonly ReplacementPolicy[] = ["lru", "fifo", "random"];
  const ends = ["close", "kill", "cut"] as const;
  const cases: Case[] = [];
  for (const maker of ["ours", "kernel"] as const) {
    for (const mode of CACHE_MODES) {
      for (const blockBytes of [512, 4096] as const) {
        for (const ourEnd of ends) {
          for (const kernelEnd of ["stop", "cut"] as const) {
            const number = cases.length;
            const flash = number % 7 === 6 || number % 5 === 3;
            cases.push({
              id: `a${number}`,
              maker,
              mode,
              blockBytes,
              bucketKib: [32, 64, 128][number % 3]!,
              replacement: policies[Math.floor(number / 3) % 3]!,
              backings: number % 7 === 6 ? 0 : number % 5 === 4 ? 2 : 1,
              ...(flash ? { flash, bucketKib: 128 } : {}),
              ...(kernelEnd === "stop" && number % 3 === 1 ? { moving: true } : {}),
              ...(maker === "ours" && number % 4 === 1 ? { sidecar: true } : {}),
              ourEnd,
              kernelEnd,
            });
          }
        }
      }
    }
  }
  return cases;
}
