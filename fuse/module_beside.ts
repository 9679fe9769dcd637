/** Addresses of modules that are named by URL: an installed package has them as JavaScript. */

/** What `new URL("./name.ts", import.meta.url)` should be: in the language of its author. */
export function moduleBeside(url: URL, from: string): URL {
  return from.endsWith(".ts") ? url : new URL(url.href.replace(/\.ts$/, ".js"));
}
