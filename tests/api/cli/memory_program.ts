/** The command line over real FUSE mounts of volumes in memory; run by real_mount_test.ts. */
import { runProgram } from "../../../api/cli/real_program.ts";
import { mountCacheSet } from "../../../fuse/mount_handle.ts";

const engineModule = new URL("./status_engine.ts", import.meta.url).href;

await runProgram(import.meta.url, {
  mount: (config, listeners) =>
    mountCacheSet({ ...config, engineModule, settings: [["size", "1048576"]] }, listeners),
  make: () => Promise.reject(new Error("not here")),
});
