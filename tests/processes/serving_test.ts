/** Real servers that race, hang, are cut off from the kernel, or change while they are used. */
import { test } from "bun:test";
import { assert, assertEquals, assertLess, assertMatch, assertNotEquals } from "@std/assert";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";
import {
  attempt,
  bcacheFuse,
  inWorkshop,
  isMounted,
  type Outcome,
  run,
  type Served,
} from "../e2e/support/workshop.ts";
import { programUnder, RUNTIMES } from "./support/runtimes.ts";
import {
  abortConnection,
  client,
  complaintsOf,
  exitOf,
  largeBlocks,
  statusOf,
  writeSome,
} from "./support/scene.ts";

const LIMIT_MS = 120_000;
const SIZES = { cacheMib: 40, backingMib: 40 };
const WRITEBACK = ["--cache-mode", "writeback", "--set", "writeback_running=0"];

/** fio writing and verifying what it wrote, without an end of its own. */
function load(served: Served, seconds: number): Promise<Outcome> {
  return attempt([
    ...["fio", "--name=load", `--filename=${served.file}`, "--size=32m", "--rw=randwrite"],
    ...["--bs=16k", "--fsync=16", "--ioengine=libaio", "--iodepth=8", "--verify=crc32c"],
    ...["--verify_backlog=64", "--verify_state_save=0", "--verify_fatal=1"],
    ...["--time_based", `--runtime=${seconds}`],
  ]);
}

test(
  "a connection that is aborted under load ends with one line, and nothing is lost",
  () =>
    inWorkshop(async (place) => {
      const { cache, backing } = await place.format(SIZES);
      const served = await place.mount({ cache, backing, flags: WRITEBACK });
      const truth = largeBlocks();
      const aborter = sleep(50).then(() => abortConnection(place, served));
      writeSome(truth, served, 8);
      await aborter;
      assertEquals(await exitOf(served), 1);
      const complaints = complaintsOf(served);
      assertEquals(complaints.filter((line) => /: error: |: warning: /.test(line)), []);
      assertEquals(complaints.length, 1, served.output());
      assertMatch(complaints[0]!, /was aborted.*all that was acknowledged is kept/);
      assertEquals(isMounted(served.mountpoint), false, "no dead mount is left");
      await bcacheFuse("check", "--cache", cache, "--backing", backing);
      const again = await place.mount({ cache, backing });
      assertEquals(truth.verify(again.file).losses, []);
      const loaded = load(again, 20);
      await sleep(700);
      await abortConnection(place, again);
      assertNotEquals((await loaded).status, 0);
      assertEquals(await exitOf(again), 1);
      await bcacheFuse("check", "--cache", cache, "--backing", backing);
    }),
  LIMIT_MS,
);

test(
  "of many mounts of one cache at once one wins, and the others say who",
  () =>
    inWorkshop(async (place) => {
      const { cache, backing } = await place.format(SIZES);
      const contenders = Array.from({ length: 4 }, (_, index) => {
        const folder = place.makeFolder(`mnt${index}`);
        const [program, ...before] = programUnder(RUNTIMES[index % 2]!);
        const words = ["mount", "-C", cache, "-B", backing, "--http", "off", folder];
        const child = spawn(program!, [...before, ...words], { stdio: ["ignore", "pipe", "pipe"] });
        let said = "";
        child.stdout.on("data", (part) => said += String(part));
        child.stderr.on("data", (part) => said += String(part));
        return { folder, child, said: () => said, ended: once(child, "close") };
      });
      const isUp = ({ said }: { said: () => string }): boolean => said().includes("mounted at");
      const losers = () => contenders.filter(({ child }) => child.exitCode !== null);
      for (let tries = 0; losers().length < 3 || !contenders.some(isUp); tries++) {
        assert(tries < 1500, contenders.map(({ said }) => said()).join("\n"));
        await sleep(20);
      }
      const winner = contenders.find(isUp)!;
      for (const { folder, child, said } of losers()) {
        assertEquals(child.exitCode, 1);
        assert(said().includes(`in use by process ${winner.child.pid} (`), said());
        assert(said().includes(`${winner.folder})`), `the winner's mount point: ${said()}`);
        assertEquals(isMounted(folder), false);
      }
      for (
        const words of [
          ["make", "-C", cache, "-b", "64k", "--force"],
          ["writeback", "--cache", cache, "--backing", backing],
          ["check", "--cache", cache, "--backing", backing],
        ]
      ) {
        const refused = await client(...words);
        assertEquals(refused.status, 1);
        assert(refused.stderr.includes(`in use by process ${winner.child.pid} (`), refused.stderr);
      }
      await bcacheFuse("unmount", winner.folder);
      await winner.ended;
      await bcacheFuse("check", "--cache", cache, "--backing", backing);
    }),
  LIMIT_MS,
);

test("of two attaches of one device at once one is done", () =>
  inWorkshop(async (place) => {
    const { cache, backing } = await place.format(SIZES);
    const served = await place.mount({ cache, backing });
    const other = place.path("other.img");
    await run("truncate", "-s", "40M", other);
    const { stdout } = await client("status", served.mountpoint, "--json");
    const setUuid = String(JSON.parse(stdout).set.setUuid);
    await bcacheFuse("make", "-B", other, "--cset-uuid", setUuid, "-w", "4k");
    const both = await Promise.all([
      client("attach", served.mountpoint, other),
      client("attach", served.mountpoint, other),
    ]);
    assertEquals(both.filter(({ status }) => status === 0).length, 1);
    assertMatch(both.find(({ status }) => status === 1)!.stderr, /already/);
    assertEquals((await statusOf(served)).devices.length, 2);
    await place.unmount(served);
    await bcacheFuse("check", "--cache", cache, "--backing", backing, "--backing", other);
  }), LIMIT_MS);

test(
  "commands for a stopped server end with a clear line, and it goes on afterwards",
  () =>
    inWorkshop(async (place) => {
      const { cache, backing } = await place.format(SIZES);
      const served = await place.mount({ cache, backing });
      process.kill(served.process.pid!, "SIGSTOP");
      const { mountpoint } = served;
      const sinceMs = performance.now();
      try {
        const answers = await Promise.all([
          client("status", mountpoint),
          client("flush", mountpoint),
          client("unmount", mountpoint, "--force"),
          client("get", mountpoint),
          client("mount", "-C", cache, "-B", backing, "--http", "off", mountpoint),
        ]);
        assertLess(performance.now() - sinceMs, 40_000);
        for (const { status, stderr } of answers) {
          assertEquals(status, 1, stderr);
          assertMatch(stderr, /does not answer: .*kill -CONT|already a mount point/);
        }
      } finally {
        process.kill(served.process.pid!, "SIGCONT");
      }
      assertEquals((await client("status", mountpoint)).status, 0);
      await place.unmount(served);
    }),
  LIMIT_MS,
);

test(
  "a device on a file system that hangs holds up nobody but who attaches it",
  () =>
    inWorkshop(async (place) => {
      const { cache, backing } = await place.format(SIZES);
      const served = await place.mount({ cache, backing });
      await withHangingMount(async (hanging) => {
        const attaching = client("attach", served.mountpoint, hanging.file);
        await sleep(500);
        const truth = largeBlocks();
        const reading = await attempt(
          ["dd", `if=${served.file}`, "of=/dev/null", "bs=64k", "count=16", "iflag=direct"],
          { limitMs: 10_000 },
        );
        assertEquals(reading.status, 0, reading.stderr);
        writeSome(truth, served, 2);
        assertEquals((await statusOf(served)).devices.length, 1);
        process.kill(hanging.process.pid!, "SIGCONT");
        assertMatch((await attaching).stderr, /no bcache superblock/);
      });
      await place.unmount(served);
    }),
  LIMIT_MS,
);

/** Another mount whose server is stopped. */
async function withHangingMount(body: (hanging: Served) => Promise<void>): Promise<void> {
  await inWorkshop(async (other) => {
    const hanging = await other.mount(await other.format(SIZES));
    process.kill(hanging.process.pid!, "SIGSTOP");
    try {
      await body(hanging);
    } finally {
      process.kill(hanging.process.pid!, "SIGCONT");
    }
  });
}
