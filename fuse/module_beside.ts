/** Addresses of modules that are named by URL: an installed package has them as JavaScript. */

/** The module `name` in the folder of the module at `url`, written in the same language. */
export function moduleBeside(name: string, url: string): URL {
  return new URL(`./${name}.${url.endsWith(".ts") ? "ts" : "js"}`, url);
}
