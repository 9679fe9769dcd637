/**
 * What a command needs of the machine, installed once its options are known to be right: before
 * that nothing is downloaded but the npm packages, which it takes to look at them.
 */
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import process from "node:process";

/**
 * Has install.sh look for what `purposes` need when npm runs one of `commands`. Started by hand, or
 * by another command, a command uses what is there.
 */
export function installFor(commands: readonly string[], ...purposes: readonly string[]): void {
  if (!commands.includes(process.env["npm_lifecycle_event"] ?? "")) return;
  const script = join(import.meta.dirname!, "install.sh");
  const { status } = spawnSync("sh", [script, ...purposes], { stdio: "inherit" });
  if (status !== 0) process.exit(status ?? 1);
}
