/**
 * The one typed error of the library. `code` says what kind of thing went wrong, `errno` is what
 * a system call would have returned, the message says what, where, found, expected, what to do.
 */

/** Linux errno numbers used by this program (asm-generic). */
export const ERRNO = {
  EPERM: 1,
  ENOENT: 2,
  EINTR: 4,
  EIO: 5,
  ENXIO: 6,
  EAGAIN: 11,
  ENOMEM: 12,
  EACCES: 13,
  EBUSY: 16,
  EEXIST: 17,
  ENODEV: 19,
  ENOTDIR: 20,
  EISDIR: 21,
  EINVAL: 22,
  EFBIG: 27,
  ENOSPC: 28,
  EROFS: 30,
  ERANGE: 34,
  ENOSYS: 38,
  ENOTEMPTY: 39,
  ENODATA: 61,
  EADDRINUSE: 98,
  ENOTCONN: 107,
  ESHUTDOWN: 108,
  EOPNOTSUPP: 95,
  EUCLEAN: 117,
} as const;
export type Errno = (typeof ERRNO)[keyof typeof ERRNO];

/** Every kind of failure, with the errno a system call would report for it. */
const CODES = {
  /** Bytes on a device do not have the form they must have. */
  BadFormat: ERRNO.EUCLEAN,
  /** Bytes on a device do not match their checksum. */
  BadChecksum: ERRNO.EUCLEAN,
  /** A device failed to read, write or flush. */
  DeviceIo: ERRNO.EIO,
  /** The cache set has failed and serves nothing any more. */
  SetFailed: ERRNO.EIO,
  /** A host file system or a device has no room. */
  NoSpace: ERRNO.ENOSPC,
  ReadOnly: ERRNO.EROFS,
  /** The object is being stopped. */
  Shutdown: ERRNO.ESHUTDOWN,
  /** Somebody else uses it. */
  Busy: ERRNO.EBUSY,
  InvalidArgument: ERRNO.EINVAL,
  /** What was asked for makes no sense as things are, whatever its arguments. */
  WrongState: ERRNO.EINVAL,
  OutOfRange: ERRNO.ERANGE,
  NotFound: ERRNO.ENOENT,
  Exists: ERRNO.EEXIST,
  /** Only by force: data that is nowhere else would be given up. */
  HoldsData: ERRNO.EEXIST,
  Permission: ERRNO.EACCES,
  NotSupported: ERRNO.EOPNOTSUPP,
  AddressInUse: ERRNO.EADDRINUSE,
} as const;
export type ErrorCode = keyof typeof CODES;

export class BcacheError extends Error {
  override name = "BcacheError";
  readonly code: ErrorCode;
  readonly errno: number;
  /** A state that the log told of when it began; not to be repeated for every request. */
  readonly isLogged: boolean;

  /** @param errno overrides the code's usual errno (a device that reported ENOSPC, say). */
  constructor(
    code: ErrorCode,
    message: string,
    options?: { cause?: unknown; errno?: number; isLogged?: boolean },
  ) {
    super(message, options?.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.errno = options?.errno ?? CODES[code];
    this.isLogged = options?.isLogged ?? false;
  }
}

/** The errno to answer a system call with after `error`; anything untyped is EIO. */
export function errnoOf(error: unknown): number {
  return error instanceof BcacheError ? error.errno : ERRNO.EIO;
}

/** One line about `error`, fit for a log or a terminal. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** What can be done about a journal or an index that cannot be followed. */
export const DAMAGE_ADVICE =
  "see what is left with `check`, save it with `extract --rescue`, or restore a copy";
