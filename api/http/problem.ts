/**
 * Errors as HTTP sees them: application/problem+json (RFC 9457), and the one table from error
 * code to status. The member `code` carries our own code, so that a client can rebuild the error.
 */
import { BcacheError, type ErrorCode, messageOf } from "../../lib/base/errors.ts";

/**
 * The status that answers each kind of failure. What is damaged or was changed is a device that the
 * request named: one that is in use fails the set instead.
 */
export const STATUS_OF_CODE = {
  BadFormat: 422,
  BadChecksum: 422,
  DeviceIo: 502,
  SetFailed: 503,
  NoSpace: 507,
  ReadOnly: 409,
  Shutdown: 503,
  Busy: 409,
  InvalidArgument: 400,
  WrongState: 409,
  OutOfRange: 422,
  NotFound: 404,
  Exists: 409,
  HoldsData: 409,
  Permission: 403,
  NotSupported: 501,
  AddressInUse: 409,
} as const satisfies Record<ErrorCode, number>;

/** What a problem's `code` may be besides the library's own codes: faults of the HTTP request. */
export const REQUEST_CODES = {
  400: "BadRequest",
  403: "Forbidden",
  404: "NotFound",
  405: "MethodNotAllowed",
  408: "RequestTimeout",
  413: "ContentTooLarge",
  415: "UnsupportedMediaType",
  417: "ExpectationFailed",
  431: "HeadTooLarge",
  500: "Internal",
} as const;
export type RequestStatus = keyof typeof REQUEST_CODES;

const TITLES: Readonly<Record<string, string>> = {
  BadFormat: "Not what was expected on a device",
  BadChecksum: "Damaged bytes on a device",
  DeviceIo: "A device failed",
  SetFailed: "The cache set has failed",
  NoSpace: "No space left",
  ReadOnly: "Read-only",
  Shutdown: "Not serving",
  Busy: "In use",
  InvalidArgument: "Invalid value",
  WrongState: "Not possible as it is now",
  OutOfRange: "Value out of range",
  NotFound: "Not found",
  Exists: "Exists already",
  HoldsData: "Holds data that is nowhere else",
  Permission: "Not permitted",
  NotSupported: "Not supported",
  AddressInUse: "Address in use",
  BadRequest: "Bad request",
  Forbidden: "Forbidden",
  MethodNotAllowed: "Method not allowed",
  RequestTimeout: "Request not sent in time",
  ContentTooLarge: "Content too large",
  UnsupportedMediaType: "Unsupported media type",
  ExpectationFailed: "Expectation failed",
  HeadTooLarge: "Request head too large",
  Internal: "Internal error",
};

export interface Problem {
  type: string;
  title: string;
  status: number;
  detail: string;
  code: string;
}

function problem(status: number, code: string, detail: string): Problem {
  return {
    type: `urn:bcache-fuse:problem:${code}`,
    title: TITLES[code] ?? code,
    status,
    detail,
    code,
  };
}

/** The problem for a fault of the request itself. */
export function requestProblem(status: RequestStatus, detail: string): Problem {
  return problem(status, REQUEST_CODES[status], detail);
}

/** The problem for anything thrown below a route. Untyped errors are internal ones. */
export function problemOf(error: unknown): Problem {
  if (error instanceof BcacheError) {
    return problem(STATUS_OF_CODE[error.code], error.code, error.message);
  }
  return requestProblem(500, messageOf(error));
}

/** A problem as a response; `headers` are added. */
export function problemResponse(body: Problem, headers: Record<string, string> = {}): Response {
  return new Response(JSON.stringify(body), {
    status: body.status,
    headers: { "content-type": "application/problem+json", ...headers },
  });
}

/**
 * The error a problem stands for, on the client's side of the wire. Whatever is not a problem of
 * ours becomes DeviceIo with the status in its message.
 */
export function errorOfProblem(status: number, body: unknown): BcacheError {
  const record = typeof body === "object" && body !== null ? body as Record<string, unknown> : {};
  const code = record["code"];
  const detail = record["detail"];
  const message = typeof detail === "string"
    ? detail
    : `the server answered with status ${status} and no explanation`;
  if (typeof code === "string" && Object.hasOwn(STATUS_OF_CODE, code)) {
    return new BcacheError(code as ErrorCode, message);
  }
  return new BcacheError(status < 500 ? "InvalidArgument" : "DeviceIo", message);
}
