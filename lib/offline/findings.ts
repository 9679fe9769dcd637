/**
 * What an offline tool found wrong: findings, collected with a bound, and their text. Answers to
 * nothing in the kernel, which stops at the first thing that is wrong.
 */

/**
 * An error means that data is lost, or that the cache set cannot or must not be used as it is. A
 * warning is worth knowing and costs nothing that was ever promised.
 */
export type Severity = "error" | "warning";

/** The structure a finding is about. */
export type Subject = "superblock" | "journal" | "priorities" | "uuids" | "btree" | "backing";

export interface Finding {
  readonly severity: Severity;
  readonly subject: Subject;
  /** What is wrong, as part of a sentence. */
  readonly what: string;
  /** The device's name. */
  readonly device: string;
  readonly bucket?: number;
  /** Where on the device. */
  readonly sector?: number;
  readonly found?: string;
  readonly expected?: string;
  /** What to do. */
  readonly advice: string;
}

/** Takes findings as they come. */
export type Report = (finding: Finding) => void;

/** Findings kept in full; what comes later is only counted. */
const KEPT_MAX = 1000;

export class Findings {
  readonly kept: Finding[] = [];
  errors = 0;
  warnings = 0;
  #keptMax: number;

  constructor(keptMax: number = KEPT_MAX) {
    this.#keptMax = keptMax;
  }

  /** How many were counted and not kept. */
  get omitted(): number {
    return this.errors + this.warnings - this.kept.length;
  }

  readonly report: Report = (finding) => {
    if (finding.severity === "error") this.errors++;
    else this.warnings++;
    if (this.kept.length < this.#keptMax) this.kept.push(finding);
  };

  /** Hands over what came since the last time, and makes room for what comes next. */
  take(): { readonly kept: readonly Finding[]; readonly omitted: number } {
    const { omitted } = this;
    this.errors = 0;
    this.warnings = 0;
    return { kept: this.kept.splice(0), omitted };
  }
}

/** One line: `error: CACHE: btree: bucket 7, sector 896: WHAT: found A, expected B; ADVICE`. */
export function findingText(finding: Finding): string {
  const place = [
    ...(finding.bucket === undefined ? [] : [`bucket ${finding.bucket}`]),
    ...(finding.sector === undefined ? [] : [`sector ${finding.sector}`]),
  ].join(", ");
  const values = [
    ...(finding.found === undefined ? [] : [`found ${finding.found}`]),
    ...(finding.expected === undefined ? [] : [`expected ${finding.expected}`]),
  ].join(", ");
  const parts = [
    finding.severity,
    finding.device,
    finding.subject,
    ...(place === "" ? [] : [place]),
    finding.what,
    ...(values === "" ? [] : [values]),
  ];
  return `${parts.join(": ")}; ${finding.advice}`;
}

/** What can be done about damage of a structure of which there is no second copy. */
export const RESTORE = "restore the cache from a copy, or rescue with `extract --rescue` what is " +
  "in it and make it anew";
