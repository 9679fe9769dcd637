/**
 * docs/corruption.md, written from the table.
 *
 *   bun tests/corruption/docs.ts --write
 */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { DAMAGES } from "./damage.ts";
import { STRUCTURES } from "./places.ts";
import { SET_STATES, type SetState } from "./set.ts";
import { CANNOT_BE_TOLD, TABLE } from "./table.ts";

export const CORRUPTION_DOCS: string = join(import.meta.dirname!, "../../docs/corruption.md");

const INTRODUCTION = `# Damage

What happens when bytes of a cache set are not what was written: bit rot, a lost or misdirected
write, a restored old copy. Each cell is tried by \`tests/corruption\`: a set gets the damage, is
checked, mounted, and read in full.

- **refuse**: the mount is refused with one line that names the place. Nothing is lost by trying:
  once the damage is undone, everything is there. \`check\` reports an error. \`extract --rescue\`
  saves what can be read, and lists what it is not sure of.
- **repair**: the mount goes on, every byte is right, and what \`check\` reported is gone
  afterwards.
- **proceed**: the mount goes on, and every byte is right.
- **old data**: the mount goes on, and some of what it serves is an older version of the same
  place: the format has nothing that could tell. The notes say why.
- **wrong data**: the same, with bytes that were never written there.

Two outcomes in a cell: it depends on which bit, or on how old the copy is. Damage that comes to
light only while a set is in use makes the set fail: a device without dirty data then goes on by
itself, one with dirty data reads what is surely clean and refuses the rest
([architecture.md](architecture.md), "Errors").

The superblock of a cache is needed for everything, and the format keeps no second one: damaged or
overwritten, it comes back from a copy of the device alone (bytes 4096-8191; one made since the
set first ran). Never \`make\` a cache anew that may still be one: \`extract --rescue\` finds bucket
and block size by the journal and saves what it leads to, as long as the device has the length it
was made with. A device that was cut short is refused by a mount; \`check\`, \`dump\` and
\`extract --rescue\` read all that lies before its end.

bcache keeps no checksum of data. Damage of the data itself, on the cache or on a backing device, is
served as it is.
`;

const TITLES: Readonly<Record<SetState, string>> = {
  clean: "Nothing in the cache is dirty (writethrough)",
  dirty: "The cache has dirty data (writeback)",
};

function tableOf(state: SetState): string {
  const head = ["structure", ...DAMAGES];
  const rows = STRUCTURES.map((structure) => [
    structure,
    ...DAMAGES.map((damage) => TABLE[structure][state][damage].join(" or ") || "—"),
  ]);
  return [head, head.map(() => "---"), ...rows].map((row) => `| ${row.join(" | ")} |`).join("\n");
}

export function corruptionDocs(): string {
  const notes = Object.entries(CANNOT_BE_TOLD).map(([structure, why]) =>
    `- **${structure}.** ${why}`
  );
  return [
    INTRODUCTION,
    ...SET_STATES.flatMap((state) => [`## ${TITLES[state]}\n`, tableOf(state), ""]),
    "## What cannot be told\n",
    ...notes,
    "",
  ].join("\n");
}

if (import.meta.main && process.argv.includes("--write")) {
  writeFileSync(CORRUPTION_DOCS, corruptionDocs());
}
