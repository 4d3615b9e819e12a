/** What a client knows of one upload session. */
export interface Session {
  readonly id: string
  readonly repository: string
  readonly digest: string
  /** All bytes that the client means to send. */
  readonly bytes: Buffer
  /** Bytes that were acknowledged, and bytes that may have arrived beyond them. */
  low: number
  high: number
  /** Whether a request that ends the session was sent: its answer never came, or it came. */
  ending: 'no' | 'unknown' | 'done'
  /** When it was last used, in milliseconds since 1970. */
  usedAt: number
}

/** An upload session as it lies in a stopped server's data folder. */
export interface StoredSession {
  readonly id: string
  readonly repository: string
  /** Bytes acknowledged. */
  readonly offset: number
  /** The file's bytes; undefined when there is no file. */
  readonly bytes: Buffer | undefined
}

/** Milliseconds by which a session may be expired early: clocks are read at different moments. */
const expiryMargin = 2000

/** The upload sessions that clients have opened. */
export class Sessions {
  readonly #sessions = new Map<string, Session>()
  /** Milliseconds after which the server may expire an idle session. */
  expireAfter = Number.POSITIVE_INFINITY
  /** Whether a stop may undo the opening and the cancelling of a session: nobody's bytes depend on either. */
  losesVolatile = false

  /** To be called when the server has told the session's name. */
  open(session: Pick<Session, 'id' | 'repository' | 'digest' | 'bytes'>): Session {
    const opened: Session = { ...session, low: 0, high: 0, ending: 'no', usedAt: Date.now() }
    this.#sessions.set(session.id, opened)
    return opened
  }

  /** Whether the server may say that there is no such session. */
  mayBeGone(session: Session): boolean {
    return session.ending !== 'no' || Date.now() - session.usedAt > this.expireAfter - expiryMargin
  }

  /**
   * Compares the sessions of a stopped server with what the clients know, and goes on from what was found.
   * @returns a sentence for every difference
   */
  judge(stored: readonly StoredSession[]): string[] {
    const found = new Map(stored.map((session) => [session.id, session]))
    const violations: string[] = []
    for (const session of [...this.#sessions.values()]) {
      const row = found.get(session.id)
      if (row === undefined) violations.push(...this.#judgeMissing(session))
      else violations.push(...judgeFound(session, row, this.losesVolatile))
    }
    for (const row of stored) {
      if (this.#sessions.has(row.id) || row.offset === 0) continue
      violations.push(`I4 upload ${row.id} has ${row.offset} bytes, but nobody was ever told its name`)
    }
    return violations
  }

  *#judgeMissing(session: Session): Generator<string> {
    this.#sessions.delete(session.id)
    if (!this.mayBeGone(session) && !(this.losesVolatile && session.low === 0)) {
      yield `I1 upload ${session.id} of ${session.repository} is gone with ${session.low} acknowledged bytes`
    }
    session.ending = 'done'
  }
}

function* judgeFound(session: Session, row: StoredSession, losesVolatile: boolean): Generator<string> {
  const name = `upload ${session.id} of ${session.repository}`
  if (session.ending === 'done' && !losesVolatile)
    yield `I5 ${name} is still there after its end was acknowledged`
  if (row.repository !== session.repository) yield `I8 ${name} belongs to ${row.repository} now`
  if (row.offset < session.low || row.offset > session.high) {
    yield `I1 ${name} is at ${row.offset}, but ${session.low} to ${session.high} bytes were acknowledged or sent`
  }
  if (row.bytes !== undefined) {
    const expected = session.bytes.subarray(0, row.offset)
    if (!row.bytes.subarray(0, row.offset).equals(expected)) yield `I4 ${name} holds bytes that nobody sent`
  } else if (row.offset > 0 && session.ending === 'no') {
    yield `I6 ${name} is at ${row.offset}, but has no file`
  }
  session.low = row.offset
  session.high = row.offset
  // Without its file it can only be refused from now on: its bytes are a blob, or nearly were.
  session.ending = row.bytes === undefined && row.offset > 0 ? 'unknown' : 'no'
}
