/**
 * What power cuts leave behind is consistent: every image that the simulator boots from, and every
 * one that a shutdown leaves, goes through `checkCache`. So the engine's order of writes and the
 * check's idea of what may be are held against each other.
 */
import { test } from "bun:test";
import { assertGreater } from "@std/assert";
import { checkCache } from "../../lib/offline/check.ts";
import { findingText } from "../../lib/offline/findings.ts";
import { explore } from "../simulation/explorer.ts";
import { type RecipeName, scenarioOf } from "../simulation/scenarios.ts";
import { still } from "../simulation/still_disk.ts";
import type { EngineKind, EngineParts } from "../simulation/world.ts";

async function mustBeClean(parts: EngineParts, when: string): Promise<void> {
  const report = await checkCache({
    cache: still(parts.cache),
    backings: [still(parts.backing)],
  });
  if (report.clean) return;
  throw new Error(`${when}:\n${report.findings.map(findingText).join("\n")}`);
}

/** The same engine, with a check before every start and after every end. */
function checked(kind: EngineKind, count: () => void): EngineKind {
  return {
    ...kind,
    open: async (parts) => {
      await mustBeClean(parts, "before the start");
      count();
      const engine = await kind.open(parts);
      return {
        ...engine,
        close: async () => {
          await engine.close();
          await mustBeClean(parts, "after the end");
        },
      };
    },
  };
}

const SLICES: ReadonlyArray<readonly [RecipeName, number, number]> = [
  ["writeback", 3, 8],
  ["writethrough", 3, 10],
  ["writearound", 2, 12],
  ["writeback-only", 3, 8],
  ["small-blocks", 2, 10],
  ["change-settings", 2, 150],
  ["drain-often", 2, 60],
  ["wrap-journal", 2, 200],
  ["split-nodes", 2, 1500],
  ["reuse-buckets", 2, 1000],
];

for (const [name, seed, cutOneIn] of SLICES) {
  test(`check finds nothing before recovery nor after: ${name}`, async () => {
    let checks = 0;
    const scenario = scenarioOf(name, seed, { cutOneIn });
    await explore({ ...scenario, kind: checked(scenario.kind, () => checks++) });
    assertGreater(checks, 5);
  }, 120_000);
}
