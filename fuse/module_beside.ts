/** Addresses of modules that are named by URL: an installed package has them as JavaScript. */

/** The module at `url`, as the module at `from` has to name it: in its own language. */
export function moduleBeside(url: URL, from: string): URL {
  return from.endsWith(".ts") ? url : new URL(url.href.replace(/\.ts$/, ".js"));
}
