/** `make`, carried out. */
import { BcacheError } from "../../lib/base/errors.ts";
import type { MakeRequest } from "./program.ts";

/** Formats all that was asked for, or nothing. Returns what to tell. */
export function makeDevices(_request: MakeRequest): Promise<string> {
  return Promise.reject(new BcacheError("NotSupported", "make is not built yet; use make-bcache"));
}
