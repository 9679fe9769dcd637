/** The runtime's collector of garbage, where it lets itself be asked. */

interface WithGc {
  readonly Bun?: { gc(synchronous: boolean): void };
}

/**
 * Collects what is garbage now, and returns when that is done. For moments at which nobody waits:
 * what a start leaves behind, the bytes of every node of the index, would otherwise be freed in one
 * pause in the middle of some request. Deno has no such call, and frees such memory beside the
 * program.
 */
export function collectGarbage(): void {
  (globalThis as WithGc).Bun?.gc(true);
}
