/**
 * The C functions this program calls, their types, and what a runtime has to supply for calling
 * them: below both `libc.ts`, which is what the program uses, and the runtimes' own files.
 */

/** A place in memory, as the runtime passes it to C; opaque. It does not keep its buffer alive. */
export interface Address {
  readonly opaqueAddress: never;
}

/** C types of arguments and results, by the names both runtimes know (`size` is 64 bits wide). */
export type CType = "i32" | "u32" | "i64" | "size" | "address";
export interface CSignature {
  readonly args: readonly CType[];
  /** `i32` where only the sign and a small number matter. */
  readonly result: "i32" | "address";
}

/** What is called, and how. Variadic functions are listed with the arguments used here. */
export const SIGNATURES = {
  open: { args: ["address", "i32", "u32"], result: "i32" },
  close: { args: ["i32"], result: "i32" },
  read: { args: ["i32", "address", "size"], result: "i32" },
  write: { args: ["i32", "address", "size"], result: "i32" },
  ppoll: { args: ["address", "size", "address", "address"], result: "i32" },
  mount: { args: ["address", "address", "address", "size", "address"], result: "i32" },
  umount2: { args: ["address", "i32"], result: "i32" },
  fallocate: { args: ["i32", "i32", "i64", "i64"], result: "i32" },
  flock: { args: ["i32", "i32"], result: "i32" },
  eventfd: { args: ["u32", "i32"], result: "i32" },
  fcntl: { args: ["i32", "i32", "size"], result: "i32" },
  ioctl: { args: ["i32", "size", "address"], result: "i32" },
  prctl: { args: ["i32", "size", "size", "size", "size"], result: "i32" },
  geteuid: { args: [], result: "i32" },
  getegid: { args: [], result: "i32" },
  socketpair: { args: ["i32", "i32", "i32", "address"], result: "i32" },
  recvmsg: { args: ["i32", "address", "i32"], result: "i32" },
  pipe2: { args: ["address", "i32"], result: "i32" },
  posix_spawn: {
    args: ["address", "address", "address", "address", "address", "address"],
    result: "i32",
  },
  posix_spawn_file_actions_init: { args: ["address"], result: "i32" },
  posix_spawn_file_actions_adddup2: { args: ["address", "i32", "i32"], result: "i32" },
  posix_spawn_file_actions_destroy: { args: ["address"], result: "i32" },
  clock_gettime: { args: ["i32", "address"], result: "i32" },
  statx: { args: ["i32", "address", "i32", "u32", "address"], result: "i32" },
  waitpid: { args: ["i32", "address", "i32"], result: "i32" },
  __errno_location: { args: [], result: "address" },
} as const satisfies Record<string, CSignature>;

type Argument = number | Address | null;
/** The C functions as they are: -1 and errno on failure. */
export type RawCalls = {
  readonly [Name in keyof typeof SIGNATURES]: (...args: Argument[]) => number;
};

/** What a runtime has to supply. */
export interface ForeignInterface {
  readonly calls: RawCalls;
  /** The address of byte `offset` of `buffer`, which must not be moved or freed meanwhile. */
  addressOf(buffer: ArrayBuffer, offset: number): Address;
  /** The same address as a number, to be stored inside a C struct. */
  addressValue(address: Address): number;
  /** The calling thread's errno. */
  errno(): number;
}
