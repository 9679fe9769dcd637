/** What is made of sysfs, on folders that look like it. */
import { describe, test } from "bun:test";
import { assertEquals } from "@std/assert";
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ForwardingDevice } from "../../lib/device/forwarding.ts";
import { MemoryDevice } from "../../lib/device/memory.ts";
import { NO_TOPOLOGY, readTopology } from "../../lib/device/topology.ts";

function inSysfs(body: (root: string) => void): void {
  const root = mkdtempSync(join(tmpdir(), "sysfs-"));
  try {
    body(root);
  } finally {
    rmSync(root, { recursive: true });
  }
}

function disk(root: string, optimalBytes: string, level?: string): string {
  const folder = join(root, "disk");
  mkdirSync(join(folder, "queue"), { recursive: true });
  writeFileSync(join(folder, "queue/optimal_io_size"), `${optimalBytes}\n`);
  if (level !== undefined) {
    mkdirSync(join(folder, "md"));
    writeFileSync(join(folder, "md/level"), `${level}\n`);
  }
  return folder;
}

describe("the topology of a block device", () => {
  test("is its best size of writes, and whether a RAID with parity needs it", () =>
    inSysfs((root) => {
      assertEquals(readTopology(disk(root, "1572864", "raid5")), {
        optimalIoSectors: 3072,
        partialStripesExpensive: true,
      });
    }));

  test("of a RAID without parity partial stripes cost nothing", () =>
    inSysfs((root) => {
      const topology = readTopology(disk(root, "1048576", "raid10"));
      assertEquals(topology, { optimalIoSectors: 2048, partialStripesExpensive: false });
    }));

  test("of a partition is that of its disk", () =>
    inSysfs((root) => {
      const partition = join(disk(root, "65536"), "disk1");
      mkdirSync(partition);
      writeFileSync(join(partition, "partition"), "1\n");
      symlinkSync(partition, join(root, "8:1"));
      assertEquals(readTopology(join(root, "8:1")).optimalIoSectors, 128);
    }));

  test("is nothing where the device says nothing, or nonsense", () =>
    inSysfs((root) => {
      assertEquals(readTopology(join(root, "none")), NO_TOPOLOGY);
      for (const [index, text] of ["0", "", "-1", "100", "many", "1e300"].entries()) {
        assertEquals(readTopology(disk(join(root, String(index)), text)), NO_TOPOLOGY, text);
      }
    }));

  test("passes through devices over others", () => {
    const raid = Object.assign(new MemoryDevice(8), {
      optimalIoSectors: 64,
      partialStripesExpensive: true,
    });
    const { optimalIoSectors, partialStripesExpensive } = new ForwardingDevice(raid);
    assertEquals([optimalIoSectors, partialStripesExpensive], [64, true]);
  });
});
