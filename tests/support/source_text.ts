/**
 * TypeScript source as the tidiness checks want it: code without comments and string contents,
 * and the modules a file names. A small scanner, not a parser: it knows comments, strings,
 * templates with their `${}`, and tells a regular expression from a division by what stands before.
 */

/** The code with every comment and every literal's content blanked; line breaks stay. */
export function withoutLiterals(source: string): string {
  let out = "";
  let at = 0;
  // One entry per open template: how many braces are open inside its current `${}`.
  const templates: number[] = [];
  const blank = (length: number) => {
    out += source.slice(at, at + length).replaceAll(/[^\n]/g, " ");
    at += length;
  };
  while (at < source.length) {
    const two = source.slice(at, at + 2);
    const character = source[at]!;
    if (two === "//") blank(lengthOf(/[^\n]*/y, source, at));
    else if (two === "/*") blank(lengthOf(/\/\*[^]*?\*\//y, source, at));
    else if (character === '"') blank(lengthOf(/"(?:\\.|[^"\\\n])*"/y, source, at));
    else if (character === "'") blank(lengthOf(/'(?:\\.|[^'\\\n])*'/y, source, at));
    else if (character === "/" && expressionMayStart(out)) {
      blank(lengthOf(/\/(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\n[])+\/[a-z]*/y, source, at));
    } else if (character === "`" || (character === "}" && templates.at(-1) === 0)) {
      if (character === "}") templates.pop();
      const text = lengthOf(/[`}](?:\\[^]|\$(?!\{)|[^`\\$])*(?:`|\$\{)/y, source, at);
      if (source.slice(at, at + text).endsWith("${")) templates.push(0);
      blank(text);
    } else {
      const open = templates.length - 1;
      if (open >= 0 && character === "{") templates[open]!++;
      if (open >= 0 && character === "}") templates[open]!--;
      out += character;
      at++;
    }
  }
  return out;
}

function lengthOf(pattern: RegExp, source: string, at: number): number {
  pattern.lastIndex = at;
  // A literal that does not end is no TypeScript; one character keeps the scan going.
  return pattern.exec(source)?.[0].length ?? 1;
}

/** Whether a slash after `before` begins a regular expression rather than divides. */
function expressionMayStart(before: string): boolean {
  return /(^|[=(,:;!&|?{}[+\-*%<>~^]|\b(?:return|typeof|case|of|in|await|yield))\s*$/.test(
    before.slice(-20),
  );
}

/**
 * The modules `source` names: imports and re-exports, static and dynamic, and files given to
 * `new URL("…", import.meta.url)`, which is how workers are started.
 */
export function modulesNamedIn(source: string): string[] {
  const patterns = [
    /^\s*(?:import|export)\b[^"'`;]*?\bfrom\s*["']([^"'\n]+)["']/gm,
    /^\s*import\s*["']([^"'\n]+)["']/gm,
    /\bimport\(\s*["']([^"'\n]+)["']\s*\)/g,
    /\bnew URL\(\s*["']([^"'\n]+)["']\s*,\s*import\.meta\.url/g,
  ];
  return patterns.flatMap((pattern) => [...source.matchAll(pattern)].map((match) => match[1]!));
}
