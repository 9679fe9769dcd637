/** How figures and foreign text look in a terminal. */

export { formatBytes } from "../../lib/base/units.ts";

/** `1 error`, `2 errors`. */
export function counted(count: number, what: string): string {
  return count === 1 ? `1 ${what}` : `${count} ${what}s`;
}

/**
 * Text from a disk or another program, made safe to print: a label may hold escape sequences that
 * would steer the terminal.
 */
export function printable(text: string): string {
  return text.replace(/\p{Cc}/gu, "?");
}

/** An error message as one line; line ends become blanks. */
export function oneLine(text: string): string {
  return printable(text.trim().replace(/\s*\n\s*/g, "; "));
}

/**
 * Rows with columns padded to line up; the last column is left as it is. A column that has nothing
 * in any row is left out.
 */
export function table(rows: readonly (readonly string[])[]): string {
  const widths: number[] = [];
  for (const row of rows) {
    row.forEach((cell, at) => {
      widths[at] = Math.max(widths[at] ?? 0, cell.length);
    });
  }
  return rows.map((row) =>
    row.map((cell, at) => at === row.length - 1 ? cell : cell.padEnd(widths[at] ?? 0))
      .filter((_, at) => widths[at] !== 0).join("  ").trimEnd() + "\n"
  ).join("");
}

/** What a line in a daemon's log begins with: the time. Nothing where somebody is looking. */
export function logStamp(program: { readonly isDaemon: boolean }): string {
  return program.isDaemon ? `${new Date().toISOString()} ` : "";
}
