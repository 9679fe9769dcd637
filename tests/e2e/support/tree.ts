/** A tree of real files of bounded size, and what is in a tree. */
import { createHash } from "node:crypto";
import { copyFileSync, mkdirSync, readdirSync, readFileSync, statSync } from "node:fs";
import { dirname, join } from "node:path";

/** Regular files below `folder`, relative to it, in a fixed order; links are left out. */
function filesBelow(folder: string, inside = ""): string[] {
  return readdirSync(join(folder, inside), { withFileTypes: true })
    .sort((a, b) => (a.name < b.name ? -1 : 1))
    .flatMap((entry) => {
      const path = join(inside, entry.name);
      if (entry.isDirectory()) return filesBelow(folder, path);
      return entry.isFile() ? [path] : [];
    });
}

/**
 * Copies files of this machine into `into` until they hold `limitBytes`: the documentation of its
 * packages, and this project's own packages where that is little (containers leave it out).
 */
export function gatherTree(into: string, sources: readonly string[], limitBytes: number): number {
  let totalBytes = 0;
  for (const source of sources) {
    for (const name of filesBelow(source)) {
      const sizeBytes = statSync(join(source, name)).size;
      if (totalBytes + sizeBytes > limitBytes) continue;
      const target = join(into, source.replaceAll("/", "_"), name);
      mkdirSync(dirname(target), { recursive: true });
      copyFileSync(join(source, name), target);
      totalBytes += sizeBytes;
    }
  }
  return totalBytes;
}

/** The content of every file below `folder`: relative path and SHA-256, one per line. */
export function listTree(folder: string): string {
  return filesBelow(folder)
    .map((name) => {
      const hash = createHash("sha256").update(readFileSync(join(folder, name)));
      return `${hash.digest("hex")}  ${name}`;
    })
    .join("\n");
}
