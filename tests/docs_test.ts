/** What the documents say of the program is what the program says of itself. */
import { test } from "bun:test";
import { assert, assertEquals } from "@std/assert";
import { readFileSync } from "node:fs";
import {
  DEVICE_ATTRIBUTES,
  SET_ATTRIBUTES,
  VOLUME_ATTRIBUTES,
} from "../lib/cache/attributes/tables.ts";
import { ATTRIBUTE_DOCS, attributeDocs } from "./support/attribute_docs.ts";

test("docs/attributes.md is what the tables say; `npm run docs` writes it", () => {
  assertEquals(readFileSync(ATTRIBUTE_DOCS, "utf8"), attributeDocs());
});

test("attributes have names of their own, and say what they are and take", () => {
  for (const table of [DEVICE_ATTRIBUTES, SET_ATTRIBUTES, VOLUME_ATTRIBUTES]) {
    const names = table.map(({ name }) => name);
    assertEquals(names.length, new Set(names).size);
    for (const attribute of table) {
      const { name, range, help } = attribute;
      assert(help.length > 0, `${name} says what it is`);
      assert(attribute.write === undefined || range !== undefined, `${name} says what it takes`);
    }
  }
});
