/**
 * What becomes of a cache set when a structure of it is damaged: the table, as data. A cell names
 * every outcome that there is for the damages of its kind; none where a kind makes no sense.
 */
import type { Damage } from "./damage.ts";
import type { Structure } from "./places.ts";
import type { SetState } from "./set.ts";
import type { Outcome } from "./trial.ts";

type Row = Readonly<Record<Damage, readonly Outcome[]>>;

/** Every kind of damage is found, and nothing is started. */
const REFUSED: Row = {
  "a bit": ["refuse"],
  "a sector": ["refuse"],
  "the bucket": ["refuse"],
  "zeroed": ["refuse"],
  "an older version": ["refuse"],
};
const NEWEST_ENTRY: Row = {
  "a bit": ["old data"],
  "a sector": ["old data"],
  "the bucket": ["old data"],
  "zeroed": ["old data"],
  "an older version": ["old data"],
};
const OLD_ENTRY: Row = {
  "a bit": ["proceed", "repair"],
  "a sector": ["proceed"],
  "the bucket": ["proceed"],
  "zeroed": ["proceed"],
  "an older version": ["proceed"],
};
/** Only single fields are changed here: the rest is damage that a checksum finds. */
const keys = (bit: readonly Outcome[], zeroed: readonly Outcome[]): Row => ({
  "a bit": bit,
  "a sector": [],
  "the bucket": [],
  "zeroed": zeroed,
  "an older version": [],
});

export const TABLE: Readonly<Record<Structure, Readonly<Record<SetState, Row>>>> = {
  "superblock of the cache": {
    clean: { ...REFUSED, "an older version": ["proceed", "refuse"] },
    dirty: { ...REFUSED, "an older version": ["proceed", "refuse"] },
  },
  "superblock of a backing device": {
    clean: { ...REFUSED, "an older version": ["repair"] },
    dirty: REFUSED,
  },
  "journal: the newest entry": { clean: NEWEST_ENTRY, dirty: NEWEST_ENTRY },
  "journal: the newest entry's numbers, with a right checksum": {
    clean: keys(["refuse"], ["refuse"]),
    dirty: keys(["refuse"], ["refuse"]),
  },
  "journal: an entry in the middle": { clean: REFUSED, dirty: REFUSED },
  "journal: an entry no longer needed": { clean: OLD_ENTRY, dirty: OLD_ENTRY },
  "UUID table": {
    clean: {
      "a bit": ["proceed", "refuse", "repair"],
      "a sector": ["refuse"],
      "the bucket": ["refuse"],
      "zeroed": ["repair"],
      "an older version": ["repair"],
    },
    dirty: { ...REFUSED, "a bit": ["proceed", "refuse"] },
  },
  "UUID table of a set with a volume": {
    clean: { ...REFUSED, "a bit": ["old data", "proceed", "refuse"] },
    dirty: { ...REFUSED, "a bit": ["old data", "proceed", "refuse"] },
  },
  "priorities and generations": {
    clean: { ...REFUSED, "an older version": ["proceed"] },
    dirty: { ...REFUSED, "an older version": ["proceed"] },
  },
  "b-tree: the root": { clean: REFUSED, dirty: REFUSED },
  "b-tree: a leaf's header": {
    clean: { ...REFUSED, "an older version": ["old data", "refuse"] },
    dirty: { ...REFUSED, "an older version": ["old data", "refuse"] },
  },
  "b-tree: a later set of a leaf": { clean: REFUSED, dirty: REFUSED },
  "a key, in a set whose checksum is right": {
    clean: keys(["refuse", "wrong data"], ["proceed"]),
    dirty: keys(["refuse", "wrong data"], ["old data"]),
  },
  "a pointer, in a set whose checksum is right": {
    clean: keys(["proceed", "refuse"], ["refuse"]),
    dirty: keys(["old data", "refuse"], ["refuse"]),
  },
};

/** What nobody can tell, and why; "old data" and "wrong data" stand nowhere else. */
export const CANNOT_BE_TOLD: Readonly<Partial<Record<Structure, string>>> = {
  "journal: the newest entry":
    "A power cut that tears the entry being written looks the same, and what is torn was never " +
    "promised. Nothing else on the device tells how far the journal had come. What was flushed " +
    "since the entry before is then as it was before. When its remains can be seen, the start " +
    "and `check` say so in a warning. Damage of any older entry is found, and so are numbers " +
    "that cannot be in an entry whose checksum is right: no power cut writes that.",
  "UUID table of a set with a volume":
    "The size of a volume stands in its entry alone. With a smaller one it ends earlier, and " +
    "what is behind that end waits in the cache until the size is right again; without one it " +
    "is not served, which the log says, and `extract --rescue --volume` saves what it has.",
  "priorities and generations":
    "A whole older copy looks like the newest. Generations are taken up from the pointers of " +
    "the index, so that what is in use stays right. But a pointer to data that was dropped, " +
    "whose bucket has since served for something the index does not point to, may be believed " +
    "again.",
  "b-tree: a leaf's header":
    "A leaf grows by sets that carry one number, and an older copy with fewer of them is a whole " +
    "leaf. A copy from an earlier life of its bucket has another number, and is refused.",
  "a key, in a set whose checksum is right":
    "No disk does this: it takes an error of memory or of a program before the checksum is made. " +
    "Keys that overlap, lie out of order, before their node or outside the buckets are refused, " +
    "and dirty ones that have no data in this cache, and those whose generations contradict each " +
    "other. That two keys name the same sectors `check` alone finds: a mount serves both. One " +
    "that merely says another place is believed, since bcache keeps no checksum of data.",
  "a pointer, in a set whose checksum is right":
    "As with keys. A pointer of a wrong generation is taken for one whose data was dropped; when " +
    "that data was dirty, the log of the start and `check` say what is lost.",
};
