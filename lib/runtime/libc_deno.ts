/**
 * libc through `Deno.dlopen`. Addresses are pointer objects; a call on one that is kept costs
 * about 0.2 µs, making one costs more.
 */
import {
  type Address,
  type CType,
  type ForeignInterface,
  type RawCalls,
  SIGNATURES,
} from "./libc_calls.ts";

interface DenoFfi {
  dlopen(
    path: string,
    functions: Record<string, { parameters: string[]; result: string }>,
  ): { symbols: Record<string, (...args: unknown[]) => number> };
  readonly UnsafePointer: {
    of(bytes: Uint8Array): Address;
    value(pointer: Address): bigint | number;
  };
  readonly UnsafePointerView: new (pointer: Address) => { getInt32(offset?: number): number };
}

const TYPES: Record<CType, string> = {
  i32: "i32",
  u32: "u32",
  i64: "i64",
  size: "usize",
  address: "pointer",
};

export function openForeignInterface(library: string): ForeignInterface {
  const deno = (globalThis as unknown as { Deno: DenoFfi }).Deno;
  const functions: Record<string, { parameters: string[]; result: string }> = {};
  for (const [name, signature] of Object.entries(SIGNATURES)) {
    functions[name] = {
      parameters: signature.args.map((type) => TYPES[type]),
      result: TYPES[signature.result],
    };
  }
  const calls = deno.dlopen(library, functions).symbols as unknown as RawCalls;
  const errnoAddress = calls.__errno_location() as unknown as Address;
  const errnoView = new deno.UnsafePointerView(errnoAddress);
  return {
    calls,
    addressOf: (buffer, offset) => deno.UnsafePointer.of(new Uint8Array(buffer, offset)),
    addressValue: (address) => Number(deno.UnsafePointer.value(address)),
    errno: () => errnoView.getInt32(),
  };
}
