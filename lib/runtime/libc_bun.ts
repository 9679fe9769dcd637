/**
 * libc through `bun:ffi`. Addresses are numbers; a call costs about 0.1 µs.
 *
 * The module is named by a variable and typed here, so that Deno's type checker does not look
 * for it.
 */
import {
  type Address,
  type CType,
  type ForeignInterface,
  type RawCalls,
  SIGNATURES,
} from "./libc_calls.ts";

interface BunFfi {
  dlopen(
    path: string,
    functions: Record<string, { args: string[]; returns: string }>,
  ): { symbols: Record<string, (...args: unknown[]) => number> };
  ptr(bytes: ArrayBuffer, offset?: number): number;
  readonly read: { i32(address: number, offset: number): number };
}

const TYPES: Record<CType, string> = {
  i32: "i32",
  u32: "u32",
  i64: "i64_fast",
  size: "u64_fast",
  address: "ptr",
};

export async function openForeignInterface(library: string): Promise<ForeignInterface> {
  const specifier = "bun:ffi";
  const ffi = await import(specifier) as BunFfi;
  const functions: Record<string, { args: string[]; returns: string }> = {};
  for (const [name, signature] of Object.entries(SIGNATURES)) {
    functions[name] = {
      args: signature.args.map((type) => TYPES[type]),
      returns: TYPES[signature.result],
    };
  }
  const calls = ffi.dlopen(library, functions).symbols as unknown as RawCalls;
  const errnoAddress = calls.__errno_location();
  return {
    calls,
    addressOf: (buffer, offset) => ffi.ptr(buffer, offset) as unknown as Address,
    addressValue: (address) => address as unknown as number,
    errno: () => ffi.read.i32(errnoAddress, 0),
  };
}
