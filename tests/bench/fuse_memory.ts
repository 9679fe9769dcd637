/**
 * The data plane alone, without a cache: what FUSE and the loop cost before the engine does.
 *
 *     bun tests/bench/fuse_memory.ts [SECONDS]        (as root; needs fio)
 *
 * First the session without a kernel (nanoseconds a request), then a mounted volume in memory,
 * driven by fio. Processor time of this process is shown per request: it says more than the rate
 * where other programs share the machine.
 */
import process from "node:process";
import type { Channel } from "../../fuse/channel.ts";
import { Filesystem } from "../../fuse/filesystem.ts";
import { OPCODE, READ_IN, WRITE_IN } from "../../fuse/protocol.ts";
import { FuseSession } from "../../fuse/session.ts";
import { REQUEST_OFFSET, type Slot, SlotPool } from "../../fuse/slot.ts";
import { MemoryVolume } from "../fuse/support/memory_engine.ts";
import { Mounts, ok } from "../fuse/support/mounted.ts";
import { concat, initRequest, request, struct, unaligned } from "../fuse/support/wire.ts";

const MIB = 1024 * 1024;
const VOLUME_MIB = 64;
const FILE_NODE = 2;

/** Swallows replies: only the session is measured. */
const NOWHERE: Channel = { fd: -1, receive: () => 0, send: () => 0, close: () => {} };

function fill(slot: Slot, bytes: Uint8Array): number {
  slot.bytes.set(bytes, REQUEST_OFFSET);
  return bytes.length;
}

/** Nanoseconds that the session takes for a request of `bytes`, repeated. */
export function sessionNanoseconds(bytes: Uint8Array, requests: number): number {
  const pool = new SlotPool(unaligned);
  const filesystem = new Filesystem({
    volumes: [new MemoryVolume("bcache0", MIB)],
    ownerUser: 0,
    ownerGroup: 0,
    readOnly: false,
    wallSeconds: () => 0,
  });
  const session = new FuseSession({
    channel: NOWHERE,
    filesystem,
    pool,
    log: () => {},
    onReady: () => {},
  });
  const slot = pool.tryTake(MIB)!;
  session.handle(slot, fill(slot, initRequest()));
  const header = bytes.slice(0, 80);
  const startMs = performance.now();
  for (let count = 0; count < requests; count++) {
    slot.bytes.set(header, REQUEST_OFFSET);
    session.handle(slot, bytes.length);
  }
  return (performance.now() - startMs) * 1e6 / requests;
}

export const READ_4K: Uint8Array = request(
  OPCODE.READ,
  FILE_NODE,
  struct(READ_IN, { fh: FILE_NODE, offset: 8192, size: 4096 }),
);
export const WRITE_4K: Uint8Array = request(
  OPCODE.WRITE,
  FILE_NODE,
  concat(struct(WRITE_IN, { fh: FILE_NODE, offset: 8192, size: 4096 }), new Uint8Array(4096)),
);

const WORKLOADS: readonly (readonly [name: string, flags: readonly string[]])[] = [
  ["4k random read, depth 1", ["--rw=randread", "--bs=4k", "--ioengine=psync"]],
  ["4k random read, depth 16", ["--rw=randread", "--bs=4k", "--ioengine=libaio", "--iodepth=16"]],
  ["4k random read, 16 threads", [
    "--rw=randread",
    "--bs=4k",
    "--ioengine=psync",
    "--numjobs=16",
    "--thread",
  ]],
  ["1 MiB read, depth 4", ["--rw=read", "--bs=1m", "--ioengine=libaio", "--iodepth=4"]],
  ["4k random write, depth 16", ["--rw=randwrite", "--bs=4k", "--ioengine=libaio", "--iodepth=16"]],
];

interface FioSide {
  readonly iops: number;
  readonly bw_bytes: number;
  readonly total_ios: number;
  readonly clat_ns: { readonly percentile?: Record<string, number> };
}

async function measureMounted(seconds: number): Promise<string[]> {
  const mounts = new Mounts();
  const lines: string[] = [];
  try {
    const { file } = await mounts.mount({ size: String(VOLUME_MIB * MIB) });
    for (const [name, flags] of WORKLOADS) {
      const before = process.cpuUsage();
      const out = await ok(
        "fio",
        "--name=bench",
        `--filename=${file}`,
        `--size=${VOLUME_MIB}m`,
        "--time_based",
        `--runtime=${seconds}`,
        "--direct=1",
        "--group_reporting",
        "--output-format=json",
        ...flags,
      );
      const used = process.cpuUsage(before);
      const job = (JSON.parse(out.slice(out.indexOf("{"))) as {
        jobs: [{ read: FioSide; write: FioSide }];
      }).jobs[0];
      const side = job.read.total_ios > 0 ? job.read : job.write;
      const medianMicroseconds = (side.clat_ns.percentile?.["50.000000"] ?? 0) / 1000;
      lines.push(
        `${name}: ${(side.iops / 1000).toFixed(1)}k IOPS, ` +
          `${(side.bw_bytes / 1e9).toFixed(2)} GB/s, median ${medianMicroseconds.toFixed(0)} µs, ` +
          `${((used.user + used.system) / side.total_ios).toFixed(1)} µs of processor each`,
      );
    }
    lines.push(`resident set: ${(process.memoryUsage().rss / MIB).toFixed(0)} MiB`);
  } finally {
    await mounts.cleanUp();
  }
  return lines;
}

if (import.meta.main) {
  const requests = 1_000_000;
  for (const [name, bytes] of [["read", READ_4K], ["write", WRITE_4K]] as const) {
    sessionNanoseconds(bytes, requests / 10);
    const each = sessionNanoseconds(bytes, requests).toFixed(0);
    process.stdout.write(`session, 4k ${name} in memory: ${each} ns\n`);
  }
  const lines = await measureMounted(Number(process.argv[2] ?? 3));
  process.stdout.write(`${lines.join("\n")}\n`);
  process.exit(0);
}
