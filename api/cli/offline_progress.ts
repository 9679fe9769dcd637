/** Progress of the commands that work without a mount: on a terminal, on standard error. */
import { Presets, SingleBar } from "cli-progress";
import type { OfflineProgress, OnProgress } from "../../lib/offline/index_view.ts";
import type { Program } from "./program.ts";

const NAMES: Readonly<Record<OfflineProgress["stage"], string>> = {
  journal: "reading the journal",
  "b-tree": "reading the b-tree",
  extents: "checking extents",
  copy: "copying",
};

/** Steps between two looks at the terminal: a step may be a microsecond. */
const STEPS = 16;

/** Runs `body` with something to tell its progress to; nothing of it is left on the screen. */
export async function withProgress<T>(
  program: Program,
  body: (progress: OnProgress | undefined) => Promise<T>,
): Promise<T> {
  if (!program.isTerminal) return await body(undefined);
  const bar = new SingleBar({
    format: "{stage} {bar} {value}/{total}",
    hideCursor: true,
    clearOnComplete: true,
  }, Presets.shades_classic);
  let stage = "";
  let step = 0;
  try {
    return await body((progress) => {
      if (progress.stage === stage && step++ % STEPS !== 0) return;
      const total = Math.max(progress.total, progress.done, 1);
      if (progress.stage !== stage) {
        if (stage !== "") bar.stop();
        stage = progress.stage;
        bar.start(total, progress.done, { stage: NAMES[progress.stage] });
      }
      bar.setTotal(total);
      bar.update(progress.done);
    });
  } finally {
    if (stage !== "") bar.stop();
  }
}
