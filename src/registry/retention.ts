import { satisfies } from 'semver'
import type { TagFacts, TagStore } from '../../storage/tag-store.js'
import { parseDigest } from '../oci/digest.js'
import type { RepositoryName, Tag } from '../oci/reference.js'
import { matchesRepository, type RepositoryPattern } from '../oci/repository-pattern.js'
import { matchesTag } from '../oci/tag-pattern.js'
import { livedSince } from './lived-time.js'

/** Tags, and repositories, that are read at once, and tags that go in one transaction. */
const pageSize = 500
const stepSize = 100

/** Tags above a manifest that are looked at; where there are more, the tag stays. */
const mostAbove = 1000

/** Tags that stay: those for which all of it is true. Times are milliseconds. */
export interface Keep {
  readonly tags?: readonly string[] | undefined
  readonly versions?: string | undefined
  readonly pushedWithin?: number | undefined
  readonly pulledWithin?: number | undefined
  readonly newest?: number | undefined
}

/** What stays in some repositories. */
export interface Rule {
  readonly repositories: readonly RepositoryPattern[]
  readonly keep: readonly Keep[]
}

/** What retention is told. */
export interface RetentionOptions {
  /** The first that matches a repository counts. */
  readonly rules: readonly Rule[]
  readonly immutableTags: (repository: RepositoryName) => readonly string[]
  /** Milliseconds for which a tag that was restored stays at least. */
  readonly undo: number
  /** Milliseconds since 1970, now. */
  readonly clock: () => number
}

/** What becomes of a tag, and why. */
export interface Verdict {
  readonly facts: TagFacts
  readonly isKept: boolean
  readonly why: string
}

/** Signatures and the like that clients tag with the digest of what they belong to. */
const tiedTag = /^sha256-([0-9a-f]{64})(?:\..+)?$/

/** Removes the tags that no rule keeps. Manifests are left to garbage collection. */
export class Retention {
  readonly #tags: TagStore
  readonly #options: RetentionOptions

  constructor(tags: TagStore, options: RetentionOptions) {
    this.#tags = tags
    this.#options = options
  }

  /** The rule of a repository, if it has one. */
  ruleOf(repository: RepositoryName): Rule | undefined {
    return this.#options.rules.find(({ repositories }) =>
      repositories.some((pattern) => matchesRepository(pattern, repository)),
    )
  }

  /** Repositories with tags and a rule, in byte order; those of mirrors have none. */
  async *repositories(): AsyncGenerator<RepositoryName> {
    for (let after = ''; ; ) {
      const page = await this.#tags.listTaggedRepositories(after, pageSize)
      for (const name of page) if (this.ruleOf(name) !== undefined) yield name
      const last = page.at(-1)
      if (last === undefined || page.length < pageSize) return
      after = last
    }
  }

  /** What becomes of each tag of a repository, in byte order; changes nothing. */
  async judge(repository: RepositoryName): Promise<Verdict[]> {
    const rule = this.ruleOf(repository)
    if (rule === undefined) return []
    const now = this.#options.clock()
    const running = await this.#tags.listRunning()
    const all = await this.#listTags(repository)
    const isRestored = ({ lastChange }: TagFacts) =>
      lastChange?.how === 'restore' && lastChange.at > livedSince(now, this.#options.undo, running)
    // Who brings a tag back does not want another one to go for it.
    const own = all.filter((facts) => !tiedTag.test(facts.tag) && !isRestored(facts))
    const reasons = new Map<Tag, string>()
    const keep = (tag: Tag, why: string) => void (reasons.has(tag) || reasons.set(tag, why))
    const immutable = this.#options.immutableTags(repository)
    for (const facts of all) {
      const { tag } = facts
      if (immutable.some((pattern) => matchesTag(pattern, tag))) keep(tag, 'it is immutable')
      if (isRestored(facts)) keep(tag, 'it was restored lately')
    }
    const since = (length: number) => livedSince(now, length, running)
    for (const clause of rule.keep) {
      for (const { tag } of select(own, clause, since)) keep(tag, describe(clause))
    }
    await this.#keepRelatives(repository, all, reasons)
    return all.map((facts) => {
      const why = reasons.get(facts.tag)
      return { facts, isKept: why !== undefined, why: why ?? 'nothing keeps it' }
    })
  }

  /** Removes tags, as far as they are what they were when they were judged. @returns those that went */
  async remove(repository: RepositoryName, doomed: readonly TagFacts[]): Promise<Tag[]> {
    const removed: Tag[] = []
    for (let at = 0; at < doomed.length; at += stepSize) {
      const change = { immutable: this.#options.immutableTags(repository), now: Date.now() }
      removed.push(...(await this.#tags.removeTags(repository, doomed.slice(at, at + stepSize), change)))
    }
    return removed
  }

  async #listTags(repository: RepositoryName): Promise<TagFacts[]> {
    const all: TagFacts[] = []
    for (;;) {
      const page = await this.#tags.listTagFacts(repository, all.at(-1)?.tag ?? '', pageSize)
      all.push(...page)
      if (page.length < pageSize) return all
    }
  }

  /** Tags on what a kept index lists, on what refers to something kept, and those that are named after it. */
  async #keepRelatives(
    repository: RepositoryName,
    all: readonly TagFacts[],
    reasons: Map<Tag, string>,
  ): Promise<void> {
    const kept = new Set(reasons.keys())
    for (const { tag, digest } of all) {
      if (reasons.has(tag)) continue
      const tied = tiedTag.exec(tag)?.[1]
      const subject = tied === undefined ? digest : parseDigest(`sha256:${tied}`)
      const above = await this.#tags.listTagsAbove(repository, subject, mostAbove)
      const holder = above.find((one) => kept.has(one.tag) && (tied !== undefined || one.digest !== digest))
      if (holder !== undefined) reasons.set(tag, `it belongs to ${holder.tag}, which is kept`)
      else if (above.length === mostAbove) reasons.set(tag, 'it belongs to too many tags to look at')
    }
  }
}

/** The tags that a clause keeps. */
function select(all: readonly TagFacts[], clause: Keep, since: (length: number) => number): TagFacts[] {
  const { tags, versions, pushedWithin, pulledWithin, newest } = clause
  const fits = all.filter(
    ({ tag, pushedAt, pulledAt }) =>
      (tags === undefined || tags.some((pattern) => matchesTag(pattern, tag))) &&
      (versions === undefined || isWithin(tag, versions)) &&
      (pushedWithin === undefined || pushedAt >= since(pushedWithin)) &&
      (pulledWithin === undefined || pulledAt >= since(pulledWithin)),
  )
  return newest === undefined ? fits : fits.sort(byChange).slice(0, newest)
}

/** Later changes first, in the order in which they came, whatever the clock said; then those that are not remembered. */
function byChange(one: TagFacts, other: TagFacts): number {
  const entries = (other.lastChange?.entry ?? 0) - (one.lastChange?.entry ?? 0)
  return entries !== 0 ? entries : other.pushedAt - one.pushedAt
}

/** Whether a tag is a version in a range; helm writes `_` for the `+` that tags cannot have. */
function isWithin(tag: Tag, range: string): boolean {
  return satisfies(tag.replace(/^v/, '').replace('_', '+'), range, { includePrerelease: true })
}

function describe({ tags, versions, pushedWithin, pulledWithin, newest }: Keep): string {
  const parts = [
    newest === undefined ? [] : `among the newest ${newest}`,
    tags === undefined ? [] : `tags ${tags.join(', ')}`,
    versions === undefined ? [] : `versions ${versions}`,
    pushedWithin === undefined ? [] : `pushed within ${days(pushedWithin)}`,
    pulledWithin === undefined ? [] : `pulled within ${days(pulledWithin)}`,
  ]
  return parts.flat().join(', ')
}

function days(length: number): string {
  const units = [
    [86_400_000, 'd'],
    [3_600_000, 'h'],
    [60_000, 'm'],
  ] as const
  const [size, unit] = units.find(([size]) => length % size === 0) ?? [1000, 's']
  return `${length / size}${unit}`
}
