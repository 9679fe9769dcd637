/** What is known of buckets, however many there are. */
import { test } from "bun:test";
import { assertEquals } from "@std/assert";
import { BucketView } from "../../lib/offline/bucket_view.ts";

test("doubt is about one bucket, and stays", () => {
  const buckets = new BucketView(61, 16);
  const doubted = [0, 7, 9, 10, 60];
  for (const bucket of [...doubted, 9]) buckets.doubt(bucket);
  const found = Array.from(buckets.gen.keys()).filter((bucket) => buckets.isDoubtful(bucket));
  assertEquals(found, doubted);
});

test("doubt may be about more buckets than a Set takes elements", () => {
  const count = 2 ** 24 + 1;
  const buckets = new BucketView(count + 1, 16);
  for (let bucket = 0; bucket < count; bucket++) buckets.doubt(bucket);
  assertEquals([count - 1, count].map((bucket) => buckets.isDoubtful(bucket)), [true, false]);
});
