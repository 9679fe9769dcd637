/** What is said of a set that failed, and of files that were deleted under it. */
import { test } from "bun:test";
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { describeLoss, warningsOf } from "../../fuse/losses.ts";
import { FakeControl, volumeStatus } from "../api/fake_control.ts";
import type { SetStatus } from "../../lib/cache/ports.ts";

async function statusWith(dirtyBytes: number, more: Partial<SetStatus> = {}): Promise<SetStatus> {
  const status = await new FakeControl(1).status();
  const devices = status.devices.map((device) => ({ ...device, attached: true, dirtyBytes }));
  return { ...status, devices, volumes: [], ...more };
}

test("a set that ends well has nothing to say", async () => {
  assertEquals(describeLoss(await statusWith(4096), undefined), undefined);
  assertEquals(warningsOf(await statusWith(4096), [{ path: "c", fate: "there" }]), []);
});

test("a failed set says what is only in the cache, or that nothing is lost", async () => {
  const dirty = describeLoss(await statusWith(4096, { failed: "no room" }), undefined);
  assert(dirty?.isLost);
  assertStringIncludes(dirty.error.message, "only in the cache are bcache0: 4.0 KiB");
  assertStringIncludes(dirty.error.message, "(no room)");
  const clean = describeLoss(await statusWith(0, { failed: "no room" }), undefined);
  assertEquals(clean?.isLost, false);
  assertStringIncludes(clean!.error.message, "nothing is lost");
});

test("what closing rejects with is a loss, dirty or not", async () => {
  const loss = describeLoss(await statusWith(0), new Error("flush failed"));
  assert(loss?.isLost);
  assertStringIncludes(loss.error.message, "flush failed");
});

test("a deleted file is warned of while something ends with it", async () => {
  const dirty = await statusWith(4096);
  const clean = await statusWith(0);
  const { cachePath } = dirty;
  const { backingPath } = dirty.devices[0]!;
  const deleted = (path: string) => [{ path, fate: "deleted" as const }];
  const [only] = warningsOf(dirty, deleted(cachePath));
  assertStringIncludes(only!, "only there are bcache0: 4.0 KiB");
  assertEquals(warningsOf(clean, deleted(cachePath)), []);
  const [copy] = warningsOf(clean, deleted(backingPath));
  assertStringIncludes(copy!, "copy bcache0 to another place");
  const loss = describeLoss({ ...clean, warnings: ["deleted"] }, undefined);
  assertEquals([loss?.isLost, loss?.error.message], [true, "deleted"]);
});

test("a deleted file is that of its own device, not of one whose path begins alike", async () => {
  const status = await statusWith(0);
  const device = (name: string, backingPath: string) => ({
    ...status.devices[0]!,
    name,
    backingPath,
  });
  const devices = [
    device("bcache0", "/img/disk"),
    device("bcache1", "/img/disk1"),
    device("bcache2", "/img/link"),
  ];
  const link = { path: "/img/link", filePath: "/far/disk", fate: "there" as const };
  const cases = [
    ["/img/disk", "bcache0"],
    ["/img/disk.bcache", "bcache0"],
    ["/img/disk1", "bcache1"],
    ["/img/disk1.bcache", "bcache1"],
    ["/far/disk.bcache", "bcache2"],
    ["/img/disk10", "what it holds"],
  ] as const;
  for (const [path, what] of cases) {
    const [warning] = warningsOf({ ...status, devices }, [link, { path, fate: "deleted" }]);
    assertStringIncludes(warning!, `${path} was deleted while in use, and ends with this mount: `);
    assertStringIncludes(warning!, `copy ${what} to another place first`);
  }
});

test("of a deleted cache the advice is what saves what is only there", async () => {
  const volume = volumeStatus("bcache1", 1 << 20);
  const advice = async (dirtyBytes: number, usedBytes: number) => {
    const status = await statusWith(dirtyBytes, { volumes: [{ ...volume, usedBytes }] });
    const [only] = warningsOf(status, [{ path: status.cachePath, fate: "deleted" }]);
    return only?.split("; ")[1];
  };
  assertEquals(await advice(4096, 0), "flush first");
  assertEquals(await advice(0, 4096), `copy ${volume.name} to another place first`);
  assertEquals(await advice(4096, 4096), `flush first, and copy ${volume.name} to another place`);
});

test("a device that errors have disabled makes the end a failure", async () => {
  const status = await statusWith(4096);
  const disabled = "a flush of it failed (EIO)";
  const devices = status.devices.map((each) => ({ ...each, disabled }));
  const loss = describeLoss({ ...status, devices }, undefined);
  assert(loss?.isLost);
  assertStringIncludes(loss.error.message, "bcache0 is disabled, a flush of it failed (EIO): what");
  assertStringIncludes(loss.error.message, "safe in the cache are 4.0 KiB of it");
});

test("a replaced file is warned of, also a cache with nothing dirty", async () => {
  const clean = await statusWith(0);
  for (const path of [clean.cachePath, clean.devices[0]!.backingPath]) {
    const [warning] = warningsOf(clean, [{ path, fate: "replaced" }]);
    assertStringIncludes(warning!, `${path} was moved away while in use, and another file is in`);
  }
});
