import Database from 'better-sqlite3'

/** Milliseconds between two tries. */
const pause = 1

/**
 * Watches the write lock of an index from outside, by trying to take it without waiting. It tells the longest time for
 * which every try failed: about as long as the longest transaction, and longer when several followed each other.
 */
export class LockWatch {
  readonly #db: Database.Database
  readonly #spans: { readonly end: number; readonly milliseconds: number }[] = []
  #timer: NodeJS.Timeout | undefined
  /** The first of the tries that have failed since the last one that did not. */
  #heldSince: number | undefined

  constructor(database: string) {
    this.#db = new Database(database, { timeout: 0, fileMustExist: true })
    const take = this.#db.prepare('BEGIN IMMEDIATE')
    const give = this.#db.prepare('ROLLBACK')
    const look = () => {
      const now = performance.now()
      try {
        take.run()
        give.run()
        this.#noteFree(now)
      } catch {
        this.#heldSince ??= now
      }
      this.#timer = setTimeout(look, pause)
    }
    look()
  }

  #noteFree(now: number): void {
    if (this.#heldSince === undefined) return
    this.#spans.push({ end: performance.timeOrigin + now, milliseconds: now - this.#heldSince + pause })
    this.#heldSince = undefined
  }

  /** The longest such time, in milliseconds, that ended between two moments (milliseconds since 1970). */
  longest(from: number, to: number): number {
    const spans = this.#spans.filter(({ end }) => end >= from && end <= to)
    return spans.reduce((most, { milliseconds }) => Math.max(most, milliseconds), 0)
  }

  stop(): void {
    clearTimeout(this.#timer)
    this.#db.close()
  }
}
