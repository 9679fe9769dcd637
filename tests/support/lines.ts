/** Text for people: numbers with what they count, and tables. */

/** "1 seed", "2 seeds"; for other plurals the second word. */
export function counted(count: number, one: string, many = `${one}s`): string {
  return `${count} ${count === 1 ? one : many}`;
}

/** Rows under each other: words begin at the left of their column, numbers end at its right. */
export function alignedRows(rows: ReadonlyArray<ReadonlyArray<string | number>>): string[] {
  const widths: number[] = [];
  for (const row of rows) {
    row.forEach((cell, at) => widths[at] = Math.max(widths[at] ?? 0, `${cell}`.length));
  }
  const aligned = (cell: string | number, at: number) =>
    typeof cell === "number" ? `${cell}`.padStart(widths[at]!) : cell.padEnd(widths[at]!);
  return rows.map((row) => row.map(aligned).join("  ").trimEnd());
}
