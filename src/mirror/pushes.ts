/** Milliseconds for which a name counts as being pushed after its sender's last sign of that. */
const pushFor = 10 * 60_000

/** Names that are remembered; the oldest are forgotten first. */
const mostNames = 10_000

/**
 * Remembers which names somebody is about to push. It is a hint, and each process has its own: without it a question
 * goes upstream that need not, and the answer is the same.
 */
export class Pushes {
  readonly #until = new Map<string, number>()

  /** Notes a sign: a session was asked for, or a layer of what has never been seen. */
  note(sender: string, repository: string): void {
    const key = `${repository} ${sender}`
    this.#until.delete(key)
    this.#until.set(key, performance.now() + pushFor)
    if (this.#until.size <= mostNames) return
    const [oldest] = this.#until.keys()
    if (oldest !== undefined) this.#until.delete(oldest)
  }

  /** Takes the signs back: who gets a manifest is pulling. */
  forget(sender: string, repository: string): void {
    this.#until.delete(`${repository} ${sender}`)
  }

  has(sender: string, repository: string): boolean {
    const until = this.#until.get(`${repository} ${sender}`)
    return until !== undefined && until > performance.now()
  }
}
