import type { Manifest } from './content.js'
import { Sessions } from './sessions.js'

/** What can be there or not: a tag, a manifest of a repository, a repository's right to a blob. */
export interface Key {
  readonly kind: 'tag' | 'manifest' | 'blob'
  readonly repository: string
  readonly name: string
}

/** A tag's digest, or `present` for manifests and blobs; undefined when it is not there. */
export type Value = string | undefined

/** What an operation does, if it happens. */
export type Effect =
  | (Key & { readonly value: Value })
  /** Takes away every tag of the repository that has this value. */
  | { readonly kind: 'tags-of'; readonly repository: string; readonly digest: string }

/** What a client knows of its operation. */
export type Outcome = 'acknowledged' | 'refused' | 'unknown'

/** When something began and ended, by the model's own clock: one tick for each event. */
export interface Span {
  readonly start: number
  readonly end: number
}

/** An operation under way or done. */
export interface Operation {
  readonly what: string
  readonly effects: readonly Effect[]
  readonly start: number
  end: number
  outcome: Outcome | 'running'
}

/** What somebody may find at a key. */
export interface Expectation extends Key {
  readonly legal: ReadonlySet<Value>
}

/** What is in the store, as somebody who looked sees it. */
export interface Contents {
  value(key: Key): Value
  /** All that is there. */
  keys(): Iterable<Key>
}

interface Write {
  readonly operation: Operation
  readonly value: Value
  /** Changes only what has this value now. */
  readonly onlyIf?: string
}

interface History {
  base: Value
  writes: Write[]
}

interface Repository {
  readonly name: string
  readonly histories: Record<Key['kind'], Map<string, History>>
  /** Deleted manifests take their tags along, those that come into being at the same time, too. */
  cascades: Write[]
}

/**
 * What the clients of a registry know, and what therefore may be found in it.
 *
 * An acknowledged operation has happened at one moment between its request and its answer. A refused one has
 * not. One whose connection died may have happened, whole, up to that moment. So a value is legal unless
 * something acknowledged came surely after it.
 */
export class Model {
  readonly sessions = new Sessions()
  /** Every manifest that was ever pushed, by digest. */
  readonly manifests = new Map<string, Manifest>()
  readonly #repositories = new Map<string, Repository>()
  readonly #unresolved = new Set<Operation>()
  readonly #uncertainBytes = new Set<string>()
  #clock = 0

  /** The next tick, for spans of reads. */
  tick(): number {
    return ++this.#clock
  }

  /** To be called before the request leaves. */
  begin(what: string, effects: readonly Effect[]): Operation {
    const operation: Operation = {
      what,
      effects,
      start: this.tick(),
      end: Number.POSITIVE_INFINITY,
      outcome: 'running',
    }
    for (const effect of effects) {
      if (effect.kind === 'tags-of') {
        this.#repository(effect.repository).cascades.push({
          operation,
          value: undefined,
          onlyIf: effect.digest,
        })
      } else this.#history(effect).writes.push({ operation, value: effect.value })
    }
    this.#unresolved.add(operation)
    return operation
  }

  /** To be called when the answer is there, or when there will be none. */
  settle(operation: Operation, outcome: Outcome): void {
    operation.end = this.tick()
    operation.outcome = outcome
    if (outcome !== 'unknown') this.#unresolved.delete(operation)
    if (outcome === 'acknowledged') return
    for (const effect of operation.effects) {
      if (effect.kind === 'blob' && effect.value !== undefined) this.#uncertainBytes.add(effect.name)
    }
  }

  /**
   * Values that a read may return that ran during the span; without a span: that may be there now.
   * @param without an operation that shall count as not having happened
   */
  legal(key: Key, span: Span = this.#now(), without?: Span): Set<Value> {
    const repository = this.#repositories.get(key.repository)
    const history = repository?.histories[key.kind].get(key.name)
    if (repository === undefined || history === undefined) return new Set([undefined])
    const { base, writes } = withCascades(repository, key.kind, history)
    return possibleValues({ base, writes: writes.filter((write) => write.operation !== without) }, span)
  }

  #now(): Span {
    return { start: this.tick(), end: this.#clock }
  }

  /** Keys of a repository that may be there now, or at some moment of the span, oldest first. */
  *present(kind: Key['kind'], repository: string, span?: Span): Generator<Key> {
    for (const [name, { base, writes }] of this.#repositories.get(repository)?.histories[kind] ?? []) {
      if (base === undefined && writes.length === 0) continue
      const key = { kind, repository, name }
      if (!isAbsent(this.legal(key, span))) yield key
    }
  }

  /** Whether a blob's file may lie there without a row: an upload of it did not end with a success. */
  mayBeOrphan(digest: string): boolean {
    return this.#uncertainBytes.has(digest)
  }

  /** What may be found at every key that was ever written. */
  expectations(): Expectation[] {
    return Array.from(this.#keys(), (key) => ({ ...key, legal: this.legal(key) }))
  }

  /**
   * Compares what is there with what may be there, at a time when nobody writes, and goes on from what was
   * found.
   * @returns a sentence for every difference
   */
  judge(contents: Contents): string[] {
    const violations = [
      ...this.#judgeValues(contents),
      ...this.#judgeStrangers(contents),
      ...this.#judgeWholeness(contents),
    ]
    this.#settleAt(contents)
    return violations
  }

  *#judgeValues(contents: Contents): Generator<string> {
    for (const key of this.#keys()) {
      const legal = this.legal(key)
      const found = contents.value(key)
      if (!legal.has(found)) yield differs(key, found, legal)
    }
  }

  *#judgeStrangers(contents: Contents): Generator<string> {
    for (const key of contents.keys()) {
      if (this.#repositories.get(key.repository)?.histories[key.kind].has(key.name)) continue
      yield `I4 ${describeKey(key)} is there, but nobody ever made it`
    }
  }

  /** What nobody answered for happened whole or not at all. */
  *#judgeWholeness(contents: Contents): Generator<string> {
    for (const operation of this.#unresolved) {
      const done: string[] = []
      const undone: string[] = []
      for (const { key, before, after } of this.#changesOf(operation)) {
        const found = contents.value(key)
        if (found === after) done.push(describeKey(key))
        else if (found === before) undone.push(describeKey(key))
      }
      if (done.length > 0 && undone.length > 0) {
        yield `I4 ${operation.what} happened by half: done for ${done.join(', ')}, not for ${undone.join(', ')}`
      }
    }
  }

  /** What an operation changed for certain, if it happened: nobody else wrote there at the time or later. */
  *#changesOf(operation: Operation): Generator<{ key: Key; before: Value; after: Value }> {
    for (const effect of operation.effects) {
      for (const key of this.#keysOf(effect)) {
        const [before, ...others] = this.legal(key, this.#now(), operation)
        const after = effect.kind === 'tags-of' ? undefined : effect.value
        if (others.length > 0 || before === after || this.#hasRivals(operation, key)) continue
        if (effect.kind === 'tags-of' && before !== effect.digest) continue
        yield { key, before, after }
      }
    }
  }

  #hasRivals(operation: Operation, key: Key): boolean {
    const { writes } = withCascades(this.#repository(key.repository), key.kind, this.#history(key))
    return writes.some(
      ({ operation: other }) =>
        other !== operation && other.outcome !== 'refused' && other.end > operation.start,
    )
  }

  *#keysOf(effect: Effect): Generator<Key> {
    if (effect.kind !== 'tags-of') {
      yield effect
      return
    }
    const { repository } = effect
    for (const name of this.#repository(repository).histories.tag.keys())
      yield { kind: 'tag', repository, name }
  }

  #settleAt(contents: Contents): void {
    this.#unresolved.clear()
    for (const repository of this.#repositories.values()) {
      repository.cascades = []
      for (const [kind, histories] of Object.entries(repository.histories)) {
        for (const [name, history] of histories) {
          const key = { kind: kind as Key['kind'], repository: repository.name, name }
          history.base = contents.value(key)
          history.writes = []
        }
      }
    }
  }

  *#keys(): Generator<Key> {
    for (const { name: repository, histories } of this.#repositories.values()) {
      for (const kind of ['tag', 'manifest', 'blob'] as const) {
        for (const name of histories[kind].keys()) yield { kind, repository, name }
      }
    }
  }

  #repository(name: string): Repository {
    let repository = this.#repositories.get(name)
    if (repository === undefined) {
      repository = {
        name,
        histories: { tag: new Map(), manifest: new Map(), blob: new Map() },
        cascades: [],
      }
      this.#repositories.set(name, repository)
    }
    return repository
  }

  #history({ kind, repository, name }: Key): History {
    const histories = this.#repository(repository).histories[kind]
    let history = histories.get(name)
    if (history === undefined) {
      history = { base: undefined, writes: [] }
      histories.set(name, history)
    }
    return history
  }
}

/** Whether nothing can be there. */
export function isAbsent(legal: ReadonlySet<Value>): boolean {
  return legal.size === 1 && legal.has(undefined)
}

/** A key for sentences. */
export function describeKey({ kind, repository, name }: Key): string {
  return kind === 'tag' ? `tag ${repository}:${name}` : `${kind} ${repository}@${name.slice(0, 19)}…`
}

/** The sentence for something that is not what it must be. */
export function differs(key: Key, found: Value, legal: ReadonlySet<Value>): string {
  const rule = found === undefined ? 'I1' : isAbsent(legal) ? 'I5' : 'I4'
  const expected = [...legal].map(describeValue).join(' or ')
  return `${rule} ${describeKey(key)} is ${describeValue(found)} where it must be ${expected}`
}

/** A value for sentences. */
export function describeValue(value: Value): string {
  if (value === undefined) return 'absent'
  return value === 'present' ? value : `${value.slice(0, 19)}…`
}

function withCascades(repository: Repository, kind: Key['kind'], history: History): History {
  if (kind !== 'tag' || repository.cascades.length === 0) return history
  return { base: history.base, writes: [...history.writes, ...repository.cascades] }
}

function possibleValues(history: History, span: Span): Set<Value> {
  const writes = history.writes.filter(
    ({ operation }) => operation.outcome !== 'refused' && operation.start < span.end,
  )
  const values = new Set<Value>()
  if (!isOverwritten(history.base, -1)) values.add(history.base)
  for (const write of writes) {
    if (!isOverwritten(write.value, write.operation.end) && mayApply(write)) values.add(write.value)
  }
  return values

  /** Whether something acknowledged surely came after this value and before the span. */
  function isOverwritten(value: Value, end: number): boolean {
    return writes.some(
      ({ operation, onlyIf }) =>
        operation.outcome === 'acknowledged' &&
        operation.start > end &&
        operation.end < span.start &&
        (onlyIf === undefined || onlyIf === value),
    )
  }

  /** Whether a conditional write may have met the value that it waits for. */
  function mayApply({ onlyIf, operation }: Write): boolean {
    if (onlyIf === undefined) return true
    const unconditional = history.writes.filter((write) => write.onlyIf === undefined)
    return possibleValues({ base: history.base, writes: unconditional }, operation).has(onlyIf)
  }
}
