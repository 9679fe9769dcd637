/**
 * Which operation of which disk meets which fault, as data; and as the words of the command line,
 * so that a failure can be shown again.
 */
import { FAULT_KINDS } from "./sim_faults.ts";
import type { FaultKind } from "./sim_faults.ts";

export const FAULT_DISKS = ["cache", "backing"] as const;
export const FAULT_OPERATIONS = ["read", "write", "flush", "zero", "discard"] as const;
/** first: of a set that was just made. restart: of one that starts after a power cut. */
export const FAULT_STAGES = ["first", "restart"] as const;
export const FAULT_ERRNOS = ["EIO", "ENOSPC"] as const;

export interface FaultPlan {
  readonly disk: (typeof FAULT_DISKS)[number];
  readonly operation: (typeof FAULT_OPERATIONS)[number];
  /** An error when absent. */
  readonly kind?: FaultKind;
  /** The first when absent. */
  readonly stage?: (typeof FAULT_STAGES)[number];
  /** 1: the disk recovers; Infinity: it does not. */
  readonly times: number;
  /** EIO when absent. */
  readonly errno?: (typeof FAULT_ERRNOS)[number];
  /** Meets one operation in so many. */
  readonly oneIn: number;
  /** At most so many, spread over all, where there are more. */
  readonly runsMax?: number;
  /** Meets only the operation with this number. */
  readonly onlyOperation?: number;
}

/** What the fault does is not told to whoever asked for the operation. */
export function isSilent({ kind }: FaultPlan): boolean {
  return kind === "rot" || kind === "misdirected" || kind === "lie";
}

/** What a fault of this kind can do to an operation. */
function concerns(kind: FaultKind, operation: FaultPlan["operation"]): boolean {
  switch (kind) {
    case "misdirected":
      return operation === "write";
    case "rot":
      return operation === "read" || operation === "write";
    case "lie":
      return operation === "flush" || operation === "write";
    case "short":
      return operation === "read" || operation === "write";
    default:
      return operation !== "discard"; // A hint, which nobody waits for.
  }
}

/** Every fault there is: of each kind, on each disk, each operation, once and for good. */
export function allPlans(options: { oneIn: number; runsMax?: number }): FaultPlan[] {
  const plans: FaultPlan[] = [];
  for (const stage of FAULT_STAGES) {
    for (const kind of FAULT_KINDS) {
      for (const disk of FAULT_DISKS) {
        for (const operation of FAULT_OPERATIONS) {
          if (!concerns(kind, operation)) continue;
          const plan = { stage, kind, disk, operation, times: 1, ...options };
          plans.push(plan);
          // For good: a disk that fails from then on, or whose flushes always lied.
          if (kind === "error" || kind === "lie") plans.push({ ...plan, times: Infinity });
          const changes = operation === "write" || operation === "zero";
          if (kind === "error" && changes) plans.push({ ...plan, errno: "ENOSPC" });
        }
      }
    }
  }
  return plans;
}

/** The options of tests/simulation/run.ts that ask for this plan, for one operation. */
export function planText(plan: FaultPlan, number: number): string {
  const { disk, operation, kind = "error", stage = "first", times, errno = "EIO" } = plan;
  const words = [`--fault ${disk}:${operation}:${number}`];
  if (kind !== "error") words.push(`--kind ${kind}`);
  if (errno !== "EIO") words.push(`--errno ${errno}`);
  if (stage !== "first") words.push(`--stage ${stage}`);
  if (times > 1) words.push("--sticky");
  return words.join(" ");
}

/** Which operations `--fault` names. @throws Error with what was expected */
export function faultPlace(
  text: string,
): Pick<FaultPlan, "disk" | "operation" | "onlyOperation"> {
  const [disk, operation, number, ...more] = text.split(":");
  if (more.length > 0 || (number !== undefined && !/^\d+$/.test(number))) {
    throw new Error("expected DISK:OPERATION or DISK:OPERATION:NUMBER");
  }
  return {
    disk: oneOf(FAULT_DISKS, disk),
    operation: oneOf(FAULT_OPERATIONS, operation),
    ...(number === undefined ? {} : { onlyOperation: Number(number) }),
  };
}

/** The plan that such options ask for. @throws as `faultPlace` does */
export function planOf(options: {
  fault: string;
  kind: FaultKind;
  errno: (typeof FAULT_ERRNOS)[number];
  stage: (typeof FAULT_STAGES)[number];
  sticky: boolean;
  oneIn: number;
}): FaultPlan {
  const { fault, kind, errno, stage, sticky, oneIn } = options;
  const place = faultPlace(fault);
  return {
    ...place,
    kind,
    stage,
    errno,
    times: sticky ? Infinity : 1,
    oneIn: place.onlyOperation === undefined ? oneIn : 1,
  };
}

function oneOf<T extends string>(all: readonly T[], text: string | undefined): T {
  const found = all.find((each) => each === text);
  if (found === undefined) throw new Error(`expected one of ${all.join(", ")}`);
  return found;
}
