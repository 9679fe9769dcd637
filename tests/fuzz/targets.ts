/** All that is fuzzed. */
import { API_TARGETS } from "./api_targets.ts";
import { FUSE_TARGETS } from "./fuse_targets.ts";
import { IMAGE_TARGETS } from "./image_targets.ts";
import { INDEX_TARGETS } from "./index_targets.ts";
import { ONDISK_TARGETS } from "./ondisk_targets.ts";
import type { FuzzTarget } from "./target.ts";

export const TARGETS: readonly FuzzTarget[] = [
  ...ONDISK_TARGETS,
  ...INDEX_TARGETS,
  ...IMAGE_TARGETS,
  ...FUSE_TARGETS,
  ...API_TARGETS,
];
