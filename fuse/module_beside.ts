/** Addresses of modules that are named by URL: an installed package has them as JavaScript. */

/** The module at `path`, a `.ts` file seen from the module at `url`, in that one's language. */
export function moduleBeside(path: string, url: string): URL {
  return new URL(url.endsWith(".ts") ? path : path.replace(/\.ts$/, ".js"), url);
}
