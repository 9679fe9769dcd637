/**
 * Putting keys into the journal and the index, as one step. Answers to `bch_data_insert_keys` of
 * request.c.
 *
 * The order that is kept: the data is written, then its key goes into the open journal entry and
 * into the b-tree in one synchronous step, then the request is acknowledged. The journal makes the
 * data durable before the entry (its preflush); a flush request waits for the entry.
 */
import { assert } from "../base/assert.ts";
import { Shared } from "../base/sync.ts";
import type { Inserter } from "../btree/insert.ts";
import { KeySet } from "../bset/key_set.ts";
import type { Journal } from "../journal/writer.ts";
import { keyDiskWords, SLOT_WORDS } from "../ondisk/bkey.ts";
import { BATCH_KEYS_MAX } from "../btree/insert.ts";

export class KeyCommitter {
  #inserter: Inserter;
  #journal: Journal;
  #words = new Uint32Array(BATCH_KEYS_MAX * SLOT_WORDS);
  /** Keys went into the journal since the last flush began. */
  #journaled = false;
  #committing = false;
  #flush: Shared;

  constructor(inserter: Inserter, journal: Journal) {
    this.#inserter = inserter;
    this.#journal = journal;
    this.#flush = new Shared(() => this.#commitJournal());
  }

  /** Every key committed before the call, and the data it points to, is durable on return. */
  flush(): Promise<void> {
    return this.#flush.run();
  }

  /** Some key may not be durable yet. After a failure: the next start may not know it. */
  get uncommitted(): boolean {
    return this.#journaled || this.#committing;
  }

  async #commitJournal(): Promise<void> {
    if (!this.#journaled) return;
    this.#journaled = false;
    this.#committing = true;
    try {
      await this.#journal.commit();
    } catch (error) {
      this.#journaled = true;
      throw error;
    } finally {
      this.#committing = false;
    }
  }

  /** Whether the index would take the batch now. The journal may still refuse. */
  canInsert(batch: KeySet): boolean {
    return this.#inserter.canInsert(batch);
  }

  /** Journals and inserts the whole batch, or does nothing and returns false. Never waits. */
  tryCommit(batch: KeySet): boolean {
    assert(batch.count <= BATCH_KEYS_MAX, "a batch is bounded");
    if (!this.#inserter.canInsert(batch)) return false;
    const words = this.#words;
    let length = 0;
    for (let index = 0; index < batch.count; index++) {
      const at = index * SLOT_WORDS;
      const keyWords = keyDiskWords(batch.words, at);
      for (let word = 0; word < keyWords; word++) words[length + word] = batch.words[at + word]!;
      length += keyWords;
    }
    const seq = this.#journal.tryAppend(words, 0, length);
    if (seq === 0) return false;
    this.#journaled = true;
    this.#inserter.insert(batch, seq);
    return true;
  }

  /** Resolves when `tryCommit` is worth another try. Rejects when the set failed. */
  async ready(batch: KeySet): Promise<void> {
    if (this.#inserter.canInsert(batch)) await this.#journal.whenRoom();
    else await this.#inserter.prepare(batch);
  }

  /**
   * Inserts clean keys that may be lost in a crash, without the journal. Resolves false, with
   * nothing inserted, when `stillWanted` says no at the moment of the insert.
   */
  async insertVolatile(batch: KeySet, stillWanted: () => boolean): Promise<boolean> {
    for (;;) {
      await this.#inserter.prepare(batch);
      if (!stillWanted()) return false;
      if (this.tryInsertVolatile(batch)) return true;
    }
  }

  /** Resolves when the index would take the batch at that moment. */
  whenInsertable(batch: KeySet): Promise<void> {
    return this.#inserter.prepare(batch);
  }

  tryInsertVolatile(batch: KeySet): boolean {
    if (!this.#inserter.canInsert(batch)) return false;
    this.#inserter.insert(batch, 0);
    return true;
  }
}
