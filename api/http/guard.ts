/**
 * Keeps web pages out. A browser on this machine reaches 127.0.0.1, so a page from anywhere could
 * steer the cache (cross-site request forgery), or read from it after pointing its own host name
 * at 127.0.0.1 (DNS rebinding). Two rules stop both: the Host header must name this server, and a
 * request that a page made must come from a page of this server.
 *
 * Requests over the control socket need neither: browsers cannot reach it, and its directory is
 * private.
 */
import { isIP } from "node:net";

/** Where a request is expected to come in: what the TCP server was bound to. */
export interface Binding {
  /** As given by the user: a name or an address, without brackets. */
  host: string;
  /** This machine's name, valid as Host when bound to every address. */
  machineName: string;
}

const MUTATING = new Set(["POST", "PUT", "PATCH", "DELETE"]);

/** The host of a Host header, without port and brackets, in lower case; undefined if malformed. */
export function hostNameOf(header: string): string | undefined {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([^:[\]/@\s]+))(?::\d{1,5})?$/.exec(header);
  return (match?.[1] ?? match?.[2])?.toLowerCase();
}

function isLoopback(name: string): boolean {
  return name === "localhost" || name.endsWith(".localhost") || name === "::1" ||
    (isIP(name) === 4 && name.startsWith("127."));
}

function isEverywhere({ host }: Binding): boolean {
  return host === "0.0.0.0" || host === "::";
}

/** What `isHostAllowed` takes, in words. */
function hostsOf(binding: Binding): string {
  return isEverywhere(binding)
    ? `localhost, an IP address or ${binding.machineName}`
    : `localhost or ${binding.host}, the address it was started with`;
}

function isHostAllowed(name: string, binding: Binding): boolean {
  if (isLoopback(name) || name === binding.host.toLowerCase()) return true;
  if (!isEverywhere(binding)) return false;
  // An address cannot be rebound: the page it belongs to came from this very address.
  return isIP(name) !== 0 || name === binding.machineName.toLowerCase();
}

/**
 * Why the request must be refused, or undefined. `binding` undefined means the control socket.
 */
export function refusalOf(
  method: string,
  headers: { host?: string | undefined; origin?: string | undefined; site?: string | undefined },
  binding: Binding | undefined,
): string | undefined {
  if (binding === undefined) return undefined;
  const name = headers.host === undefined ? undefined : hostNameOf(headers.host);
  if (name === undefined || !isHostAllowed(name, binding)) {
    return `the Host header is ${JSON.stringify(headers.host ?? "")}, which is not this server; ` +
      `expected ${hostsOf(binding)}`;
  }
  if (!MUTATING.has(method)) return undefined;
  const origin = headers.origin;
  if (origin !== undefined && origin !== `http://${headers.host}`) {
    return `a page of ${JSON.stringify(origin)} may not change anything here; ` +
      `only pages of http://${headers.host} may`;
  }
  if (origin === undefined && (headers.site === "cross-site" || headers.site === "same-site")) {
    return "a page of another site may not change anything here";
  }
  return undefined;
}
